"""What the view shows of other work than loading: packs, warm-ups, checkpoints, weights and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shardstream.format.shown import counted
from shardstream.format.sizes import human_size
from shardstream.observe.history import Process
from shardstream.observe.rows import Work, shown_time

__all__ = ["works"]


def works(processes: Iterable[Process]) -> list[Work]:
    """One row for each job and kind of work, over all processes that take part in it."""
    groups: dict[tuple[str, str, str], list[Process]] = {}
    for process in processes:
        header = process.latest.header
        for kind in _KINDS:
            if kind in header.activities:
                groups.setdefault((header.job, kind, header.what), []).append(process)
    return [
        _KINDS[kind](_Group(job, kind, what, found)) for (job, kind, what), found in sorted(groups.items())
    ]


class _Group:
    """The processes that do one work together."""

    def __init__(self, job: str, kind: str, what: str, processes: list[Process]) -> None:
        self._named = job, kind, what
        self._processes = processes

    def sum(self, counter: str) -> float:
        return sum(process.latest.values[counter] for process in self._processes)

    def most(self, counter: str) -> float:
        return max(process.latest.values[counter] for process in self._processes)

    def rate(self, counter: str) -> float | None:
        rates = [rate for process in self._processes if (rate := process.rate(counter)) is not None]
        return sum(rates) if rates else None

    def percentile(self, stage: str, percent: float) -> float:
        first, *others = (process.latest.stages[stage] for process in self._processes)
        for other in others:
            first = first.plus(other)
        return first.percentile(percent)

    def work(
        self,
        detail: list[str],
        done: float = 0.0,
        total: float = 0.0,
        rate: float | None = None,
        steps: float | None = None,
        trouble: str = "",
    ) -> Work:
        """The row.

        Args:
            detail: What else there is to say.
            done, total: Bytes or tasks.
            rate: Bytes a second.
            steps: How much `done` grows a second.
            trouble: What went wrong.
        """
        job, kind, what = self._named
        return Work(
            kind=kind,
            job=job,
            what=what,
            processes=len(self._processes),
            progress=min(1.0, done / total) if total else None,
            rate=rate,
            left=max(0.0, total - done) / steps if total and steps else None,
            detail=", ".join(detail),
            trouble=trouble,
            state=self._state(),
        )

    def _state(self) -> str:
        """Why the work does not go on: nobody works, or somebody is stopped. One may pause."""
        states = [process.state for process in self._processes]
        stopped = [state for state in states if state.startswith("stopped")]
        return stopped[0] if stopped else min(states) if all(states) else ""


def _pack(group: _Group) -> Work:
    done, total = group.most("pack_tasks_done"), group.most("pack_tasks")
    rows, shards = int(group.sum("packed_rows")), int(group.sum("packed_shards"))
    detail = [f"{counted(rows, 'sample')} in {counted(shards, 'shard')}"]
    if total:
        detail.insert(0, f"{done:,.0f} of {counted(int(total), 'task')}")
    return group.work(detail, done, total, group.rate("packed_bytes"), group.rate("pack_tasks_done"))


def _warm(group: _Group) -> Work:
    done, total = group.sum("warmed_bytes"), group.sum("warm_bytes")
    rate = group.rate("warmed_bytes")
    return group.work([f"{human_size(done)} of {human_size(total)}"], done, total, rate, rate)


def _checkpoint(group: _Group) -> Work:
    commits, skipped = int(group.most("commits")), int(group.most("saves_skipped"))
    detail = [f"step {group.most('checkpoint_step'):.0f} is durable" if commits else "none is durable yet"]
    if group.most("saves"):
        detail.append(f"the loop waits {shown_time(group.percentile('save', 99))} (p99)")
    if commits and (took := group.percentile("durable", 50)):
        detail.append(f"durable after {shown_time(took)} (p50)")
    if skipped:
        detail.append(f"{skipped:,} skipped")
    failed = int(group.most("saves_failed"))
    trouble = f"{failed:,} failed" if failed else ""
    return group.work(detail, rate=group.rate("checkpoint_bytes"), trouble=trouble)


def _weights(group: _Group) -> Work:
    detail = [
        f"{counted(int(group.sum('weight_tensors')), 'tensor')}, {human_size(group.sum('weight_bytes'))}"
    ]
    return group.work(detail, rate=group.rate("weight_bytes"))


def _logs(group: _Group) -> Work:
    rows = group.rate("log_rows")
    detail = [] if rows is None else [f"{rows:,.1f} rows/s"]
    if waiting := group.sum("log_waiting_bytes"):
        detail.append(f"{human_size(waiting)} not stored yet")
    dropped = int(group.sum("log_dropped"))
    return group.work(detail, trouble=f"{counted(dropped, 'row')} dropped" if dropped else "")


_KINDS: dict[str, Callable[[_Group], Work]] = {
    "pack": _pack,
    "warm": _warm,
    "checkpoint": _checkpoint,
    "weights": _weights,
    "logs": _logs,
}
