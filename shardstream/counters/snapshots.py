"""Reads what processes count, from outside: their files, and the percentiles of their histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shardstream.counters.cells import Cells
from shardstream.counters.folders import directories, paths_in, read
from shardstream.counters.layout import BUCKETS, COUNTERS, PER_DOUBLING, SIZE, STAGES, slot
from shardstream.counters.page import PROCESS, Header, clear_dead, is_alive, read_header

__all__ = ["Histogram", "Snapshot", "histogram_of", "read_all", "read_file", "read_own"]


@dataclass(frozen=True)
class Histogram:
    """The events of one stage.

    Attributes:
        stage: The name of the stage.
        unit: "seconds" or "bytes".
        count: How many events there were.
        sum: The sum of their values.
        buckets: How many of them lie in each bucket, or a half or a quarter of it each.
    """

    stage: str
    unit: str
    count: int
    sum: float
    buckets: Sequence[int]

    @property
    def mean(self) -> float:
        """The mean of the values; 0.0 if there was no event."""
        return self.sum / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """The value that so many percent of the events do not exceed; 0.0 if there was no event.

        It is the middle of a bucket: at most 4.5 % above or below the true value, within the range of the
        buckets.

        Args:
            percent: From 0 to 100.
        """
        total = sum(self.buckets)
        if not total:
            return 0.0
        wanted = max(1e-9, total * percent / 100)
        number = next(at for at, seen in enumerate(accumulate(self.buckets)) if seen >= wanted)
        middle: float = 2.0 ** ((number + 0.5) / PER_DOUBLING)
        return middle / 1e6 if self.unit == "seconds" else middle

    def as_dict(self) -> dict[str, float]:
        """Its "count", its sum as "seconds" or "bytes", and "p50", "p95" and "p99" in the same unit."""
        marks = {f"p{percent}": self.percentile(percent) for percent in (50, 95, 99)}
        return {"count": self.count, self.unit: self.sum, **marks}

    def since(self, earlier: Histogram) -> Histogram:
        """The events after an earlier snapshot of the same histogram."""
        pairs = zip(self.buckets, earlier.buckets, strict=True)
        # Less than before: the buckets were halved in the meantime.
        buckets = [max(0, now - before) for now, before in pairs]
        count, total = max(0, self.count - earlier.count), max(0.0, self.sum - earlier.sum)
        return Histogram(self.stage, self.unit, count, total, buckets)

    def plus(self, other: Histogram) -> Histogram:
        """The events of both."""
        buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        return Histogram(self.stage, self.unit, self.count + other.count, self.sum + other.sum, buckets)


@dataclass(frozen=True)
class Snapshot:
    """What one process had counted at one moment.

    Attributes:
        path: Of its file; "" for this process.
        header: Who it is, and what it does: `pid`, `rank`, `world`, `job`, `activities`, `what`, `began`, ...
        alive: Whether it is running. None: it lives in another container, or on another machine.
        values: The counters by name, see `layout.COUNTERS`.
        stages: The histogram of each stage by name, see `layout.STAGES`.
    """

    path: str
    header: Header
    alive: bool | None
    values: dict[str, float]
    stages: dict[str, Histogram]

    def since(self, earlier: Snapshot) -> Snapshot:
        """What came after an earlier snapshot of the same process; values that are no sums stay."""
        sums = {each.name for each in COUNTERS if each.kind == "sum"}
        before = earlier.values
        values = {name: now - before[name] if name in sums else now for name, now in self.values.items()}
        stages = {name: now.since(earlier.stages[name]) for name, now in self.stages.items()}
        return Snapshot(self.path, self.header, self.alive, values, stages)


def histogram_of(cells: Cells, number: int) -> Histogram:
    """The histogram of a stage."""
    stage, first = STAGES[number], number * BUCKETS
    buckets = cells.buckets[first : first + BUCKETS].tolist()
    count, total = cells.slots[2 * number], cells.slots[2 * number + 1]
    return Histogram(stage.name, stage.unit, int(count), total, buckets)


def _snapshot(path: str, header: Header, alive: bool | None, cells: Cells) -> Snapshot:
    first = slot(COUNTERS[0].name)
    numbers: list[float] = [*cells.slots[first : first + len(COUNTERS)]]
    values: dict[str, float] = {
        counter.name: number for counter, number in zip(COUNTERS, numbers, strict=True)
    }
    stages = {stage.name: histogram_of(cells, number) for number, stage in enumerate(STAGES)}
    return Snapshot(path, header, alive, values, stages)


def read_own() -> Snapshot:
    """What this process has counted."""
    header = read_header(bytes(PROCESS.memory)) or Header()
    return _snapshot("", header, True, Cells(bytearray(PROCESS.memory)))


def read_file(path: str) -> Snapshot | None:
    """What the process of a file has counted; None if it is gone, or no file of this version."""
    try:
        data = read(path, SIZE + 1)
    except OSError:
        return None
    header = read_header(data)
    if header is None:
        return None
    return _snapshot(path, header, is_alive(header, path), Cells(bytearray(data)))


def read_all(directory: str | None = None) -> list[Snapshot]:
    """What all processes of this user on this machine have counted, ordered by job, rank and process id.

    The files of processes that have ended are removed first.

    Args:
        directory: The folder of the files. By default those in which this process would make its own.
    """
    found = []
    for place in directories() if directory is None else [directory]:
        clear_dead(place)
        found += [
            each for each in map(read_file, paths_in(place)) if each is not None and each.alive is not False
        ]
    return sorted(found, key=lambda each: (each.header.job, each.header.rank, each.header.pid))
