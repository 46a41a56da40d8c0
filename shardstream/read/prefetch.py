"""Frames ahead of their use: held in memory within a budget of bytes, each fetched once.

Everything here but the fetching itself runs in the consumer's thread, so that nothing is locked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

__all__ = ["Frames", "Held"]

FrameId = tuple[int, int]


@dataclass
class Held:
    """One frame that is fetched or on its way."""

    future: Future[memoryview]
    size: int
    unread: int
    users: int = 0


class Frames:
    """The frames that pending batches use, and those that later batches will probably use.

    keep: how many bytes of frames may stay although no pending batch uses them.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], memoryview],
        pool: ThreadPoolExecutor,
        keep: int,
    ) -> None:
        self._fetch, self._pool, self._keep = fetch, pool, keep
        self._held: OrderedDict[FrameId, Held] = OrderedDict()
        self.in_use = 0
        self.idle = 0
        self.fetched = 0
        self.fetched_bytes = 0

    def use(self, frame: FrameId, size: int, samples: int, reads: int) -> Future[memoryview]:
        """Hold a frame of `size` bytes for a batch that reads `reads` of its `samples`."""
        held = self._held.get(frame)
        if held is None:
            held = Held(self._pool.submit(self._fetch, *frame), size, samples)
            self._held[frame] = held
            self.fetched += 1
            self.fetched_bytes += size
            self.in_use += size
        elif held.users == 0:
            self.idle -= size
            self.in_use += size
        self._held.move_to_end(frame)
        held.users += 1
        held.unread -= reads
        return held.future

    def release(self, frame: FrameId) -> None:
        """The batch that held the frame is delivered."""
        held = self._held[frame]
        held.users -= 1
        if held.users:
            return
        self.in_use -= held.size
        # A frame whose samples have all been read is not needed again in this epoch.
        if held.unread <= 0:
            del self._held[frame]
            return
        self.idle += held.size
        while self.idle > self._keep:
            oldest = next(key for key, value in self._held.items() if value.users == 0)
            self.idle -= self._held.pop(oldest).size
