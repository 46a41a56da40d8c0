"""Frames in memory before they are read, within a budget of bytes, each fetched once.

Only the fetching runs in other threads. All else runs in the thread of the consumer, so that no lock is
needed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from shardstream.read.engine.tasks import Pool, Task

__all__ = ["FrameId", "FramesInMemory", "Held", "Need"]

FrameId = tuple[int, int]
B = TypeVar("B")


class Need(NamedTuple):
    """A frame that a unit of work reads.

    Attributes:
        frame: (shard, number of the frame in the shard).
        size: The bytes of the frame in memory.
        holds: How many samples the frame holds.
        reads: How many of these samples the unit reads.
    """

    frame: FrameId
    size: int
    holds: int
    reads: int


@dataclass(frozen=True)
class Held(Generic[B]):
    """A frame that one stream leaves to the next: its buffer, its bytes, how many samples it holds."""

    task: Task[B]
    size: int
    holds: int


@dataclass
class _Entry(Generic[B]):
    """One frame that is in memory or on its way."""

    task: Task[B]
    size: int
    holds: int
    unread: int
    users: int = 0


class FramesInMemory(Generic[B]):
    """The frames that pending units use, and the frames that further units will probably use.

    Args:
        fetch: From (shard, frame) to the buffer of the frame.
        recycle: Gets each buffer that is not used any more. None: nobody does.
        pool: The threads that fetch.
        known: Frames that are in memory already.

    Attributes:
        in_use: The bytes of frames that pending units use.
        idle: The bytes of frames that no pending unit uses.
        peak: The bytes of all frames, at most so far.
        fetched: How many frames were fetched.
        fetched_bytes: The bytes of the frames that were fetched.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], B],
        recycle: Callable[[B], None] | None,
        pool: Pool,
        known: Mapping[FrameId, Held[B]] | None = None,
    ) -> None:
        self._fetch, self._recycle, self._pool = fetch, recycle, pool
        self._entries: OrderedDict[FrameId, _Entry[B]] = OrderedDict()
        self._held: dict[FrameId, None] = {}  # frames for the next stream, in the order of need
        self._held_bytes = 0
        self._lingering = False
        self.in_use = 0
        for frame, held in (known or {}).items():
            self._entries[frame] = _Entry(held.task, held.size, held.holds, held.holds)
        self.idle = self.peak = sum(entry.size for entry in self._entries.values())
        self.fetched = 0
        self.fetched_bytes = 0

    def missing(self, needs: Iterable[Need]) -> list[FrameId]:
        """The frames among `needs` that are neither in memory nor on their way."""
        return [need.frame for need in needs if need.frame not in self._entries]

    def in_use_with(self, needs: Iterable[Need]) -> int:
        """The bytes of frames in use if a unit with `needs` were begun now."""
        entries = self._entries
        others = (need.size for need in needs if need.frame not in entries or not entries[need.frame].users)
        return self.in_use + sum(others)

    def use(self, need: Need) -> Task[B]:
        """Use a frame for a unit of work; returns the task that fetches it. See `release`."""
        entry = self._used(need)
        self._entries.move_to_end(need.frame)
        entry.unread -= need.reads
        return entry.task

    def _used(self, need: Need) -> _Entry[B]:
        """The entry of a frame, with one user more."""
        entry = self._entries.get(need.frame)
        if entry is None:
            task = self._pool.submit(partial(self._fetch, *need.frame))
            entry = _Entry(task, need.size, need.holds, need.holds)
            self._entries[need.frame] = entry
            self.fetched += 1
            self.fetched_bytes += need.size
            self.in_use += need.size
            self.peak = max(self.peak, self.bytes)
        elif entry.users == 0:
            self.idle -= entry.size
            self.in_use += entry.size
        entry.users += 1
        return entry

    def linger(self, yes: bool) -> None:
        """Whether frames whose samples have all been read stay, until there is no room for them."""
        before, self._lingering = self._lingering, yes
        if before and not yes:
            over = [key for key, entry in self._entries.items() if entry.users == 0 and entry.unread <= 0]
            for frame in over:
                self.idle -= self._entries[frame].size
                self._drop(frame)

    def hold(self, need: Need, most: int, fetch_to: int) -> bool:
        """Hold a frame in memory for the next stream; False if there is no room.

        Args:
            need: The frame.
            most: How many bytes all frames that are held may have.
            fetch_to: How many bytes all frames in memory may have if it is fetched. 0: it is not.
        """
        if need.frame in self._held:
            return True
        if self._held_bytes + need.size > most:
            return False
        if need.frame not in self._entries:
            if self.in_use + need.size > fetch_to:
                return False
            self.shrink(fetch_to - need.size)
        self._held_bytes += self._used(need).size
        self._held[need.frame] = None
        return True

    def left(self, most: int, frames: Iterable[FrameId] | None = None) -> dict[FrameId, Held[B]]:
        """What the next stream gets.

        Args:
            most: How many bytes all of it may have.
            frames: Those among which it is. None: frames that are held, and those that linger.
        """
        found: dict[FrameId, Held[B]] = {}
        if frames is None:
            frames = (*self._held, *(reversed(self._entries) if self._lingering else ()))
        for frame in frames:
            entry = self._entries.get(frame)
            if entry is None or frame in found or not entry.task.done or entry.task.error is not None:
                continue
            if entry.size <= most:
                found[frame] = Held(entry.task, entry.size, entry.holds)
                most -= entry.size
        return found

    def release(self, frame: FrameId) -> None:
        """Say that a unit does not use a frame any more."""
        entry = self._entries[frame]
        entry.users -= 1
        if entry.users:
            return
        self.in_use -= entry.size
        # A frame whose samples have all been read is not needed again in this epoch.
        if entry.unread <= 0 and not self._lingering:
            self._drop(frame)
            return
        self.idle += entry.size

    @property
    def bytes(self) -> int:
        """The bytes of all frames."""
        return self.in_use + self.idle

    def shrink(self, most: int) -> None:
        """Drop frames that no pending unit uses, the oldest first, until there are at most `most` bytes."""
        while self.bytes > most and self.idle:
            oldest = next(key for key, value in self._entries.items() if value.users == 0)
            self.idle -= self._entries[oldest].size
            self._drop(oldest)

    def _drop(self, frame: FrameId) -> None:
        entry = self._entries.pop(frame)
        if self._recycle is not None and entry.task.done and entry.task.error is None:
            self._recycle(entry.task.result())
