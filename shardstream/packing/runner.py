"""Runs the tasks of a pack in worker processes, and reports the progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shardstream.counters.layout import slot
from shardstream.counters.page import begin
from shardstream.counters.recorder import put
from shardstream.packing.destination import Destination
from shardstream.packing.engines.local import run_tasks
from shardstream.packing.job import Bucket, Job, input_bytes
from shardstream.packing.result import Result
from shardstream.packing.sources import Task
from shardstream.packing.worker import run_task
from shardstream.progress import Report, Reporter

_TASKS, _DONE = slot("pack_tasks"), slot("pack_tasks_done")


class Runner:
    """Runs the tasks of a pack in one pass; for a shuffle in two passes, "spill" and then "task".

    Args:
        destination: Where receipts are stored.
        total_bytes: The bytes of the input.
        workers: How many processes work.
        progress: Called with a Progress after each task, or None.
    """

    def __init__(
        self,
        destination: Destination,
        total_bytes: int,
        workers: int,
        progress: Report,
    ) -> None:
        self._destination = destination
        self._total_bytes = total_bytes
        self._workers = workers
        self._report = Reporter(progress)
        self._found_bytes = 0  # the bytes of tasks that an earlier, unfinished pack has done

    def results(
        self,
        job: Job,
        stage: str,
        tasks: Sequence[Task | Bucket],
        continued: bool,
        inherited: Sequence[int],
    ) -> list[Result]:
        """Run one pass; returns the results in the order of the tasks' numbers. Each task leaves a receipt.

        Args:
            job: The pack.
            stage: "spill" for the first pass of a shuffle, else "task".
            tasks: What to do.
            continued: Whether tasks that have a receipt are left out.
            inherited: File descriptors that worker processes inherit.
        """
        begin("pack", job.shown)
        done: dict[int, Result] = {}
        if continued:
            for task in tasks:
                result = self._destination.receipt(stage, task.number)
                # A version that cut the input otherwise has left receipts of other tasks.
                if result is not None and result.input_bytes == _input_bytes(task):
                    done[task.number] = result
            self._found_bytes = max(self._found_bytes, self._bytes(job, stage, done, tasks) if done else 0)
        todo = [task for task in tasks if task.number not in done]
        self._progress(job, stage, done, tasks)
        if job.limit is not None and stage == ("task" if job.shuffle is None else "spill"):
            runs = _limited(job, tasks, done)
        else:
            runs = run_tasks(run_task, job, todo, self._workers, inherited)
        for result in runs:
            self._destination.write_receipt(stage, result)
            done[result.number] = result
            self._progress(job, stage, done, tasks)
        return [done[number] for number in sorted(done)]

    def _progress(self, job: Job, stage: str, done: Mapping[int, Result], tasks: Sequence[object]) -> None:
        put(_TASKS, len(tasks))
        put(_DONE, len(done))
        self._report(
            done_bytes=self._bytes(job, stage, done, tasks),
            total_bytes=self._total_bytes,
            found_bytes=self._found_bytes,
            samples=sum(result.samples for result in done.values()),
            rejected=sum(result.rejected for result in done.values()),
            done_tasks=len(done),
            total_tasks=len(tasks),
        )

    def _bytes(self, job: Job, stage: str, done: Mapping[int, Result], tasks: Sequence[object]) -> int:
        """The input bytes of the finished tasks. Each pass of a shuffle counts as half of the work."""
        read = sum(result.input_bytes for result in done.values())
        if job.shuffle is None:
            return read
        if stage == "spill":
            return read // 2
        return (self._total_bytes + self._total_bytes * len(done) // max(1, len(tasks))) // 2


def _input_bytes(task: Task | Bucket) -> int:
    return 0 if isinstance(task, Bucket) else input_bytes(task)


def _limited(job: Job, tasks: Sequence[Any], done: Mapping[int, Result]) -> Iterable[Result]:
    # One task after another: how many samples a task may pack depends on the tasks before it.
    left = job.limit or 0
    for task in tasks:
        result = done.get(task.number)
        if result is None:
            if left <= 0:
                return
            result = run_task(replace(job, limit=left), task)
            yield result
        left -= result.samples
