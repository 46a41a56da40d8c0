"""Which tasks of a pack belong to which part, so that all parts have about as many bytes to read."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TypeVar

from shardstream.packing.job import Bucket, input_bytes
from shardstream.packing.sources import Task

__all__ = ["shares"]

# What a task costs beside its bytes, in bytes: to open files, and to put a shard. It also spreads tasks whose
# size is not known.
_START = 1 << 20

Work = TypeVar("Work", bound=Task | Bucket)


def shares(tasks: Sequence[Work], parts: int) -> list[list[Work]]:
    """The tasks of each part, the largest first. They depend on the tasks and the number of parts alone.

    Each task, from the largest to the smallest, goes to the part that has the least so far. No part then has
    more than 4/3 of what the best division gives the largest part (Graham 1969, "Bounds on Multiprocessing
    Timing Anomalies").

    Args:
        tasks: All tasks of the pack.
        parts: How many parts there are. If there are more parts than tasks, some are empty.
    """
    found: list[list[Work]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]  # a heap already
    for task in sorted(tasks, key=lambda task: (-_bytes(task), task.number)):
        load, part = loads[0]
        heapq.heapreplace(loads, (load + _bytes(task) + _START, part))
        found[part].append(task)
    return found


def _bytes(task: Task | Bucket) -> int:
    # Buckets are of about one size.
    return 0 if isinstance(task, Bucket) else input_bytes(task)
