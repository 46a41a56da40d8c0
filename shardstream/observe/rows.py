"""What the view shows: a row for each process that loads, and one for each other work of a job."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SORTS", "Row", "Work", "shown_time", "sort_rows"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A process that loads. Rates are those of the last seconds. What is not known is None.

    Args:
        pid: Its process id.
        job: The name of the job that it belongs to.
        rank: Its rank in the job.
        what: The URL or path that it reads.
        state: "" if it works; else why it does not, such as "stopped" or "no progress 12 s".
        samples: Samples a second.
        batches: Batches a second.
        wait: The share of the time in which the loop waited for data, 0 to 1.
        p50, p99: Seconds of waiting that half, and 99 %, of the batches did not exceed.
        store, disk, ram: Bytes a second, by where they came from.
        hits: The share of the bytes that came from a cache, 0 to 1.
        held_up: The stage that holds up the loop; "the loop" if it waits for less than a fifth of its time.
        queue: Units of work that are ready.
        retries: Requests that were sent again, in all.
        memory: Bytes that the loaders of the process hold.
        resident: Bytes of the whole process.
    """

    pid: int
    job: str
    rank: int | None = None
    what: str = ""
    state: str = ""
    samples: float | None = None
    batches: float | None = None
    wait: float | None = None
    p50: float | None = None
    p99: float | None = None
    store: float | None = None
    disk: float | None = None
    ram: float | None = None
    hits: float | None = None
    held_up: str = ""
    queue: int | None = None
    retries: int = 0
    memory: int | None = None
    resident: int | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """A pack, warm-up, checkpoint, load of weights or log of a job, over all its processes.

    Args:
        kind: "pack", "warm", "checkpoint", "weights" or "logs".
        job: The name of the job.
        what: The URL or path.
        processes: How many processes take part.
        progress: The part that is done, 0 to 1; None if it has no end.
        rate: Bytes a second; None if that is not known.
        left: Seconds that the rest takes at this rate; None if that is not known.
        detail: What else there is to say, in a few words.
        trouble: What went wrong, in a few words.
        state: As that of a `Row`: of the first process that does not work.
    """

    kind: str
    job: str
    what: str = ""
    processes: int = 1
    progress: float | None = None
    rate: float | None = None
    left: float | None = None
    detail: str = ""
    trouble: str = ""
    state: str = ""


# What the rows of a job can be sorted by, and whether the largest value comes first.
SORTS = {
    "rank": False,
    "wait": True,
    "samples": False,
    "p99": True,
    "store": True,
    "retries": True,
    "memory": True,
}


def sort_rows(rows: list[Row], by: str) -> list[Row]:
    """The rows in the order in which a user looks for trouble: the worst first, unknown values last."""

    def key(row: Row) -> tuple[bool, float, int, int]:
        value = getattr(row, by)
        number = 0.0 if value is None else float(value)
        return value is None, -number if SORTS[by] else number, row.rank or 0, row.pid

    return sorted(rows, key=key)


def shown_time(seconds: float) -> str:
    """A duration for people: "12.3 ms", "1.20 s"."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
