"""How far a stream of batches has come, for the threads that plan what is fetched."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TypeVar

from shardstream.dataset.requests import Request

__all__ = ["Delivery", "counted"]

T = TypeVar("T")


class Delivery:
    """How far one stream has come; read by other threads."""

    def __init__(self) -> None:
        self._batches: deque[int] = deque()  # the first position of each that is planned, not delivered
        self.ended = False
        self.start: int | None = None  # the first position of all

    @property
    def position(self) -> int:
        """The first position that is planned and not delivered, or 0; of no meaning at the end."""
        try:
            return self._batches[0]
        except IndexError:
            return 0

    def planned(self, request: Request) -> None:
        """A request is being planned."""
        if self.start is None and len(request.positions):
            self.start = int(request.positions[0])
        begin = 0
        for size in request.sizes:
            self._batches.append(int(request.positions[begin]) if size else 0)
            begin += size
        self.ended = False

    def delivered(self) -> None:
        """The next batch is delivered."""
        if self._batches:  # after an error a batch may come in parts
            self._batches.popleft()
        self.ended = not self._batches


def counted(built: Generator[T, None, None], delivery: Delivery) -> Generator[T, None, None]:
    """The batches; `delivery` is told of each."""
    try:
        for batch in built:
            delivery.delivered()
            yield batch
    finally:
        built.close()
