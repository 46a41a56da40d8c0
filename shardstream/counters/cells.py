"""The numbers of a process or of a loader, in memory: mapped or private."""

from __future__ import annotations

import math
from typing import Any

from shardstream.counters.layout import BUCKETS, BUCKETS_AT, PER_DOUBLING, SIZE, SLOTS, SLOTS_AT

__all__ = ["Cells", "bucket"]

_LAST = BUCKETS - 1


def bucket(value: float) -> int:
    """The bucket of a histogram for a value, in microseconds or bytes."""
    return min(int(PER_DOUBLING * math.log2(value)), _LAST) if value > 1 else 0


class Cells:
    """Slots and histograms in memory of `SIZE` bytes; see `layout`.

    They are stored to without a lock. In CPython with a GIL no addition is lost, since a thread is never
    stopped between the load and the store of one.

    Attributes:
        memory: All of it, with the header.
        slots: The slots, as float64.
        buckets: The buckets of all histograms, as uint32.
    """

    __slots__ = ("buckets", "memory", "slots")

    def __init__(self, memory: Any = None) -> None:
        self.use(bytearray(SIZE) if memory is None else memory)

    def use(self, memory: Any) -> None:
        """Store to this memory from now on."""
        view = memoryview(memory)
        self.memory = memory
        self.slots = view[SLOTS_AT : SLOTS_AT + 8 * SLOTS].cast("d")
        self.buckets = view[BUCKETS_AT:SIZE].cast("I")

    def observe(self, stage: int, at: int, value: float, count: int) -> None:
        """Count events of a stage.

        Args:
            stage: Its number.
            at: The bucket of its histogram in which each of them lies.
            value: The sum of their values, in seconds or bytes.
            count: How many they are.
        """
        slots, place = self.slots, stage * BUCKETS + at
        slots[2 * stage] += count
        slots[2 * stage + 1] += value
        try:
            self.buckets[place] += count
        except ValueError:  # it is full
            self.make_room(stage)

    def make_room(self, stage: int) -> None:
        """Halve all buckets of a histogram, since one is full."""
        buckets = self.buckets
        for place in range(stage * BUCKETS, (stage + 1) * BUCKETS):
            buckets[place] >>= 1
