"""A snapshot of all processes as plain values, for JSON."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from shardstream.counters.snapshots import Histogram
from shardstream.observe.history import Process
from shardstream.observe.rows import Work

__all__ = ["report"]


def report(processes: Sequence[Process], works: Sequence[Work], seconds: float) -> dict[str, Any]:
    """What the view shows, with all counters and percentiles.

    Args:
        processes: All processes.
        works: The rows of what is no loading.
        seconds: Over how long rates were taken.
    """
    return {
        "time": time.time(),
        "seconds": seconds,
        "processes": [_process(process) for process in processes],
        "works": [dataclasses.asdict(work) for work in works],
    }


def _process(process: Process) -> dict[str, Any]:
    snapshot, header = process.latest, process.latest.header
    row = dataclasses.asdict(process.row())
    for name in ("pid", "job", "rank", "what", "state", "resident"):
        del row[name]
    return {
        "pid": header.pid,
        "job": header.job,
        "rank": header.rank if header.rank >= 0 else None,
        "world": header.world if header.world >= 0 else None,
        "host": header.host,
        "activities": sorted(header.activities),
        "what": header.what,
        "began": header.began,
        "state": process.state,
        "resident_bytes": process.resident,
        "now": row,
        "counters": snapshot.values,
        "stages": {name: _stage(histogram) for name, histogram in snapshot.stages.items() if histogram.count},
    }


def _stage(histogram: Histogram) -> dict[str, Any]:
    return {
        "unit": histogram.unit,
        "count": histogram.count,
        "sum": histogram.sum,
        **{f"p{percent}": histogram.percentile(percent) for percent in (50, 95, 99)},
    }
