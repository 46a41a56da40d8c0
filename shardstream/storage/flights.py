"""Blocks on their way, and the ranges in which neighbours come together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from shardstream.storage.blocks import Block
from shardstream.storage.stores import Data

__all__ = ["Flight", "Want", "ranges"]


class Want(NamedTuple):
    """A block, and how to get it: `size` stored bytes from `start` of an object.

    accept: makes what is kept of the stored bytes, or raises CorruptionError.
    soon: whether it is worth memory until it is asked for, where the SSD tier has it.
    """

    block: Block
    url: str
    start: int
    size: int
    accept: Callable[[Data], Data]
    soon: bool = True


class Flight:
    """A block on its way. The result None means: look again, another process has it, or nobody any more."""

    def __init__(self, want: Want) -> None:
        self.want = want
        self.future: Future[Data | None] = Future()

    def followed(self) -> Future[Data | None]:
        """A future with the same result, which one of those who wait may cancel."""
        mine: Future[Data | None] = Future()

        def follow(done: Future[Data | None]) -> None:
            if mine.set_running_or_notify_cancel():
                error = done.exception()
                if error is None:
                    mine.set_result(done.result())
                else:
                    mine.set_exception(error)

        self.future.add_done_callback(follow)
        return mine


def ranges(flights: Sequence[Flight], most: int) -> list[list[Flight]]:
    """Neighbours in one object together, at most `most` bytes; what is needed first comes first."""
    order = {flight: number for number, flight in enumerate(flights)}
    found: list[list[Flight]] = []
    size = 0
    for flight in sorted(flights, key=lambda flight: (flight.want.url, flight.want.start)):
        want = flight.want
        before = found[-1][-1].want if found else None
        if (
            before is not None
            and (before.url, before.start + before.size) == (want.url, want.start)
            and size + want.size <= most
        ):
            found[-1].append(flight)
            size += want.size
        else:
            found.append([flight])
            size = want.size
    return sorted(found, key=lambda flights: min(order[flight] for flight in flights))
