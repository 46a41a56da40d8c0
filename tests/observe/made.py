"""Snapshots of processes that count what a test wants."""

from __future__ import annotations

import os
from collections.abc import Iterable

from shardstream.counters.cells import Cells, bucket
from shardstream.counters.layout import COUNTERS, STAGES, stage
from shardstream.counters.page import Header
from shardstream.counters.snapshots import Snapshot, histogram_of


def made(
    *,
    pid: int | None = None,
    start: int = 1,
    job: str = "train.py",
    rank: int = 0,
    activities: Iterable[str] = ("loader",),
    what: str = "s3://bucket/corpus",
    events: dict[str, Iterable[float]] | None = None,
    alive: bool | None = True,
    **values: float,
) -> Snapshot:
    """A snapshot.

    Args:
        pid: The process id; None is that of this process.
        start: When it started.
        job, rank, activities, what: As in its header.
        events: The events of each stage, in seconds or bytes.
        alive: As in `Snapshot`.
        values: Counters by name; the others are 0.
    """
    cells = Cells()
    for name, amounts in (events or {}).items():
        number = stage(name)
        scale = 1e6 if STAGES[number].unit == "seconds" else 1.0
        for amount in amounts:
            cells.observe(number, bucket(amount * scale), amount, 1)
    header = Header()
    header.pid, header.start = os.getpid() if pid is None else pid, start
    header.job, header.rank, header.world = job, rank, 4
    header.activities, header.what = frozenset(activities), what
    counted = {counter.name: 0.0 for counter in COUNTERS}
    assert set(values) <= set(counted)
    stages = {each.name: histogram_of(cells, number) for number, each in enumerate(STAGES)}
    return Snapshot("", header, alive, counted | values, stages)
