"""Frames ahead of their use: held in memory within a budget of bytes, each fetched once.

Everything here but the fetching itself runs in the consumer's thread, so that nothing is locked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

__all__ = ["FrameId", "Frames", "Need"]

FrameId = tuple[int, int]
B = TypeVar("B")


class Need(NamedTuple):
    """A frame, (shard, number in the shard), that a unit of work reads."""

    frame: FrameId
    size: int  # bytes in memory
    holds: int  # samples in the frame
    reads: int  # how many of them this unit reads


@dataclass
class _Held(Generic[B]):
    """One frame that is fetched or on its way."""

    future: Future[B]
    size: int
    unread: int
    users: int = 0


class Frames(Generic[B]):
    """The frames that pending work uses, and those that later work will probably use.

    fetch: gives the buffer of a frame.  recycle: gets each buffer that nobody uses any more.
    keep: how many bytes of frames may stay although no pending work uses them.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], B],
        recycle: Callable[[B], None] | None,
        pool: ThreadPoolExecutor,
        keep: int,
    ) -> None:
        self._fetch, self._recycle, self._pool, self._keep = fetch, recycle, pool, keep
        self._held: OrderedDict[FrameId, _Held[B]] = OrderedDict()
        self.in_use = 0
        self.idle = 0
        self.fetched = 0
        self.fetched_bytes = 0

    def missing(self, needs: Iterable[Need]) -> list[FrameId]:
        """The frames among these that are neither here nor on their way."""
        return [need.frame for need in needs if need.frame not in self._held]

    def use(self, need: Need) -> Future[B]:
        """Hold a frame for a unit of work."""
        held = self._held.get(need.frame)
        if held is None:
            held = _Held(self._pool.submit(self._fetch, *need.frame), need.size, need.holds)
            self._held[need.frame] = held
            self.fetched += 1
            self.fetched_bytes += need.size
            self.in_use += need.size
        elif held.users == 0:
            self.idle -= held.size
            self.in_use += held.size
        self._held.move_to_end(need.frame)
        held.users += 1
        held.unread -= need.reads
        return held.future

    def release(self, frame: FrameId) -> None:
        """The unit that held the frame is done with it."""
        held = self._held[frame]
        held.users -= 1
        if held.users:
            return
        self.in_use -= held.size
        # A frame whose samples have all been read is not needed again in this epoch.
        if held.unread <= 0:
            self._drop(frame)
            return
        self.idle += held.size
        while self.idle > self._keep:
            oldest = next(key for key, value in self._held.items() if value.users == 0)
            self.idle -= self._held[oldest].size
            self._drop(oldest)

    def _drop(self, frame: FrameId) -> None:
        held = self._held.pop(frame)
        if self._recycle is not None and held.future.done() and held.future.exception() is None:
            self._recycle(held.future.result())
