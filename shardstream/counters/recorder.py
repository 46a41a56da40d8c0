"""What code calls that counts: for a loader and its process, or for the process alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from shardstream.counters.cells import Cells, bucket
from shardstream.counters.layout import BUCKETS, PER_DOUBLING, STAGES
from shardstream.counters.page import PROCESS

__all__ = [
    "NO_LOADER",
    "Link",
    "Listener",
    "Recorder",
    "add",
    "listen",
    "listening",
    "observe",
    "put",
    "span",
]

_SCALE = tuple(1e6 if each.unit == "seconds" else 1.0 for each in STAGES)  # to the unit of the buckets
_LAST = BUCKETS - 1
_CONSUMER = 2  # the first stages are those of the consumer: wait, step
_log2 = math.log2

# What a span takes and what it gives, each by keys that are the same at the other end.
Link = tuple[Sequence[object], Sequence[object]]
# (number of the stage, begin, end, events, link or None); times in seconds of `time.monotonic`.
Listener = Callable[[int, float, float, int, Link | None], Any]
_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Tell somebody of each span from now on, in the thread that worked; None: nobody."""
    global _listener
    _listener = listener


def listening() -> bool:
    """Whether somebody is told of spans."""
    return _listener is not None


def add(slot: int, amount: float = 1) -> None:
    """Add to a counter of this process."""
    PROCESS.slots[slot] += amount


def put(slot: int, value: float) -> None:
    """Set a number of this process that is no sum."""
    PROCESS.slots[slot] = value


def observe(stage: int, value: float) -> None:
    """Count an event of a stage of this process, with its value in seconds or bytes."""
    PROCESS.observe(stage, bucket(value * _SCALE[stage]), value, 1)


def span(stage: int, started: float, ended: float) -> None:
    """Count an event of a stage of this process.

    Args:
        stage: Its number.
        started: When it began, in seconds of `time.monotonic`.
        ended: When it ended.
    """
    seconds = ended - started
    PROCESS.observe(stage, bucket(seconds * 1e6), seconds, 1)
    if (listener := _listener) is not None:  # read once: another thread may end the trace
        listener(stage, started, ended, 1, None)


# The values of slots, and the buckets that are not empty, each with its number.
Sparse = tuple[list[float], list[tuple[int, int]]]


class Recorder(Cells):
    """Counts for one loader, and at the same time for its process. For many threads."""

    __slots__ = ()

    def add(self, slot: int, amount: float = 1) -> None:
        """Add to a counter."""
        self.slots[slot] += amount
        PROCESS.slots[slot] += amount

    def put(self, slot: int, value: float) -> None:
        """Set a number that is no sum."""
        self.slots[slot] = value
        PROCESS.slots[slot] = value

    def nothing(self, stage: int, count: int) -> None:
        """Count events of a stage that took no time, of which a trace is not told."""
        self.observe(stage, 0, 0.0, count)
        PROCESS.observe(stage, 0, 0.0, count)

    def span(
        self, stage: int, started: float, ended: float, count: int = 1, link: Link | None = None
    ) -> None:
        """Count events of a stage that took the same time each, one after another.

        Args:
            stage: Its number.
            started: When the first one began, in seconds of `time.monotonic`.
            ended: When the last one ended.
            count: How many they are, at least 1.
            link: What they take and give, if somebody is `listening`.
        """
        seconds = ended - started
        each = seconds * 1e6 / count
        at = min(int(PER_DOUBLING * _log2(each)), _LAST) if each > 1 else 0
        place, number = stage * BUCKETS + at, 2 * stage
        try:  # what `observe` does, for both: a call would cost more than the rest
            self.slots[number] += count
            self.slots[number + 1] += seconds
            self.buckets[place] += count
            PROCESS.slots[number] += count
            PROCESS.slots[number + 1] += seconds
            PROCESS.buckets[place] += count
        except ValueError:  # a bucket is full
            self.make_room(stage)
            PROCESS.make_room(stage)
        if (listener := _listener) is not None:
            listener(stage, started, ended, count, link)

    def copy(self) -> Cells:
        """What it has counted so far."""
        return Cells(bytearray(self.memory))

    def sparse(self) -> Sparse:
        """What it has counted so far, for another process."""
        return [*self.slots], [(place, count) for place, count in enumerate(self.buckets) if count]

    def continue_with(self, before: Cells, theirs: Sparse) -> None:
        """Take over the stages of another process, except those of the consumer, who is here.

        Args:
            before: What was counted here when the other process began.
            theirs: What it has counted, of `sparse`.
        """
        slots, buckets = theirs
        for number in range(2 * _CONSUMER, 2 * len(STAGES)):
            self.slots[number] = before.slots[number] + slots[number]
        self.buckets[_CONSUMER * BUCKETS :] = before.buckets[_CONSUMER * BUCKETS :]
        for place, count in buckets:
            if place >= _CONSUMER * BUCKETS:
                self.buckets[place] += count


NO_LOADER = Recorder()  # for work that belongs to no loader: only what it adds to the process is read
