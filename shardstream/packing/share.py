"""Which tasks of a pack belong to which part, so that all parts have about as many bytes to read."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Sequence
from typing import TypeVar

from shardstream.packing.job import Bucket, input_bytes
from shardstream.packing.sources import Task
from shardstream.packing.work import Chosen

__all__ = ["chosen", "shares"]

# What a task costs beside its bytes, in bytes: to open files, and to put a shard. It also spreads tasks whose
# size is not known.
_START = 1 << 20

Work = TypeVar("Work", bound=Task | Bucket)


def chosen(tasks: Sequence[Work], places: Iterable[int]) -> Sequence[Work]:
    """The tasks at some places of a plan."""
    return [tasks[place] for place in places] if isinstance(tasks, list) else Chosen(tasks, places)


def shares(tasks: Sequence[Work], parts: int) -> list[Sequence[Work]]:
    """The tasks of each part, the largest first. They depend on the tasks and the number of parts alone.

    Each task, from the largest to the smallest, goes to the part that has the least so far. No part then has
    more than 4/3 of what the best division gives the largest part (Graham 1969, "Bounds on Multiprocessing
    Timing Anomalies").

    Args:
        tasks: All tasks of the pack.
        parts: How many parts there are. If there are more parts than tasks, some are empty.
    """
    sizes, numbers = array("Q", map(_bytes, tasks)), array("Q", (task.number for task in tasks))
    found = [array("Q") for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]  # a heap already
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], numbers[place])):
        load, part = loads[0]
        heapq.heapreplace(loads, (load + sizes[place] + _START, part))
        found[part].append(place)
    return [chosen(tasks, places) for places in found]


def _bytes(task: Task | Bucket) -> int:
    # Buckets are of about one size.
    return 0 if isinstance(task, Bucket) else input_bytes(task)
