"""How long tasks take: which is begun first, and which is so slow that another worker does it, too.

One machine of many that is slow, or one request that never ends, would keep the whole pack from its end. When
there is nothing else to do, an idle worker makes a second attempt at a task that is slow. The first result
counts. Attempts at a task write the same bytes under the same names. But that is not enough: where a put is
not one step, that of an attempt that is killed damages what the other one has put. So the pack says where
there may be second attempts, see `Counts.copies`.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

from shardstream.packing.work import Chosen, work_of

__all__ = ["MOST_COPIES", "Pace", "longest_first", "may_copy"]

MOST_COPIES = 3  # further attempts at one task, each after the one before was lost
_SLOW = 3.0  # times what is usual
_LEAST_SECONDS = 10.0  # a worker takes some seconds to start
_KEPT = 1000  # tasks whose times are known
T = TypeVar("T")


def may_copy(task: Any) -> bool:
    """Whether a second attempt at a task may run beside the first one."""
    return not getattr(task, "alone", False)


def longest_first(tasks: Sequence[T]) -> Sequence[T]:
    """The tasks in the order in which they are begun: else a long one may be the last, with nobody to share.

    Those of the same length keep their order. Of a plan that is not in memory, only a number for each task is
    held. There all lengths between two powers of two count as the same: neighbours stay neighbours, and a
    worker finds its tasks in the object of the plan that it read last.
    """
    if isinstance(tasks, list):
        return sorted(tasks, key=work_of, reverse=True)
    numbers = sorted(range(len(tasks)), key=lambda number: work_of(tasks[number]).bit_length(), reverse=True)
    return Chosen(tasks, numbers)


class Pace:
    """The times of the last tasks that were done."""

    def __init__(self) -> None:
        self._known: deque[tuple[float, int]] = deque(maxlen=_KEPT)
        self._usual: tuple[float, float] | None = None

    def add(self, seconds: float, work: int) -> None:
        """Note how long a task took.

        Args:
            seconds: How long.
            work: Its bytes, see `work_of`.
        """
        self._known.append((seconds, work))
        self._usual = None

    def limit(self, tasks: int, work: int) -> float:
        """After how many seconds some tasks, one after another, are slow; infinity while none was done.

        That is three times the median of the tasks that were done, or the median for so many bytes if that is
        more: a task of a hundred times the bytes is not slow.

        Args:
            tasks: How many they are.
            work: The bytes of all of them.
        """
        if not self._known:
            return math.inf
        if self._usual is None:
            rates = [seconds / work for seconds, work in self._known if work]
            median = statistics.median(seconds for seconds, _ in self._known)
            self._usual = median, statistics.median(rates) if rates else 0.0
        task, byte = self._usual
        return max(_LEAST_SECONDS, _SLOW * max(tasks * task, work * byte))
