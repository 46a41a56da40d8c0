"""The metrics of all processes of this node, with the names that Prometheus wants."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

from shardstream.counters.layout import BUCKETS, COUNTERS, PER_DOUBLING, STAGES, Counter
from shardstream.counters.snapshots import Histogram, Snapshot, read_all
from shardstream.observe.exposition import Buckets, Family, labelled
from shardstream.observe.process_state import resident_bytes

__all__ = ["coarse", "counts_here", "families", "labels_of", "metric_name", "waiting_seconds"]

# A bound at each doubling. Microseconds: 128 us to 67 s. Bytes: 1 KiB to 256 MiB.
_DOUBLINGS = {"seconds": range(7, 27), "bytes": range(10, 29)}
_SCALE = {"seconds": 1e6, "bytes": 1.0}
_BOUNDS = {unit: tuple(2**power / _SCALE[unit] for power in powers) for unit, powers in _DOUBLINGS.items()}
# The counters of a group are shown once a process does one of these; those of other groups always.
_READERS = {"loader", "reader"}


def metric_name(counter: Counter) -> str:
    """The name of the metric of a counter."""
    if counter.name == "waiting_since":
        return "shardstream_waiting_seconds"
    return f"shardstream_{counter.name}{'_total' if counter.kind == 'sum' else ''}"


def waiting_seconds(process: Snapshot, now: float | None = None) -> float:
    """How long the loop of a process has waited for its next batch by now; 0.0 if it does not wait.

    Args:
        process: Its snapshot.
        now: `time.monotonic()` at the snapshot.
    """
    since = process.values["waiting_since"]
    return max(0.0, (time.monotonic() if now is None else now) - since) if since else 0.0


def counts_here(process: Snapshot, counter: Counter) -> bool:
    """Whether a process does what a counter counts. Else it is 0, and says nothing."""
    doing, group = process.header.activities, counter.group
    if group == "loader":
        return bool(doing & _READERS)
    return group == "storage" or group in doing or bool(process.values[counter.name])


def labels_of(process: Snapshot) -> dict[str, object]:
    """The labels of all metrics of a process. Prometheus itself adds one that is called `job`.

    Containers that share a folder may have processes of equal ids: `host` tells them apart.
    """
    header = process.header
    rank = header.rank if header.rank >= 0 else ""
    return {"job_name": header.job, "rank": rank, "pid": header.pid, "host": header.host}


def coarse(histogram: Histogram) -> Buckets:
    """A histogram with the bounds that Prometheus gets: one at each doubling."""
    powers = _DOUBLINGS[histogram.unit]
    edges = [0, *(power * PER_DOUBLING for power in powers), BUCKETS]
    fine = histogram.buckets
    counts = [sum(fine[low:high]) for low, high in pairwise(edges)]
    return Buckets(_BOUNDS[histogram.unit], counts, histogram.sum)


def families(processes: Iterable[Snapshot] | None = None) -> Iterator[Family]:
    """The metrics of processes.

    Args:
        processes: Their snapshots; None reads those of this node.
    """
    found = list(read_all() if processes is None else processes)
    now = time.monotonic()
    named = [(process, labelled(labels_of(process))) for process in found]
    yield Family(
        "shardstream_processes", "gauge", "Processes that use shardstream on this node.", [("", len(found))]
    )
    yield Family(
        "shardstream_process_info",
        "gauge",
        "What a process does, and with which dataset, checkpoint or log; always 1.",
        [(f"{labels},{_about(process)}", 1) for process, labels in named],
    )
    yield Family(
        "shardstream_process_start_time_seconds",
        "gauge",
        "When a process began to count, in seconds since 1970.",
        [(labels, process.header.began) for process, labels in named],
    )
    yield Family(
        "shardstream_process_resident_memory_bytes",
        "gauge",
        "Memory of a process, all of it, not of shardstream alone.",
        [(labels, size) for process, labels in named if (size := resident_bytes(process)) is not None],
    )
    for counter in COUNTERS:
        waits = counter.name == "waiting_since"
        yield Family(
            metric_name(counter),
            "counter" if counter.kind == "sum" else "gauge",
            "How long the loop has waited for its next batch by now, in seconds; 0 if it does not."
            if waits
            else _sentence(counter.help),
            [
                (labels, waiting_seconds(process, now) if waits else process.values[counter.name])
                for process, labels in named
                if counts_here(process, counter)
            ],
        )
    for stage in STAGES:
        suffix = "" if stage.name.endswith(stage.unit) else f"_{stage.unit}"
        yield Family(
            f"shardstream_{stage.name}{suffix}",
            "histogram",
            f"{_sentence(stage.help)} In {stage.unit}.",
            [
                (labels, coarse(process.stages[stage.name]))
                for process, labels in named
                if process.stages[stage.name].count
            ],
        )


def _about(process: Snapshot) -> str:
    header = process.header
    return labelled(
        {
            "kind": ",".join(sorted(header.activities)),
            "url": header.what,
            "world": header.world if header.world >= 0 else "",
        }
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
