"""Runs the tasks of a pack in worker processes, and says how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shardstream.pack.engines.local import run_tasks
from shardstream.pack.job import Bucket, Job, Result, run
from shardstream.pack.progress import Progress
from shardstream.pack.sources import Task
from shardstream.pack.target import Target


class Runner:
    """Runs the passes over a pack's tasks: one, or for a shuffle a "spill" and then a "task" pass."""

    def __init__(
        self, target: Target, total_bytes: int, workers: int, report: Callable[[Progress], None] | None
    ) -> None:
        self._target = target
        self._total_bytes = total_bytes
        self._workers = workers
        self._report = report
        self._started = time.monotonic()

    def results(
        self,
        job: Job,
        stage: str,
        tasks: Sequence[Task | Bucket],
        continued: bool,
        keep: Sequence[int],
    ) -> list[Result]:
        """The results of all tasks in the order of their numbers; each leaves a receipt.

        continued: tasks that have a receipt are not run again.  keep: descriptors that workers inherit.
        """
        done: dict[int, Result] = {}
        if continued:
            for task in tasks:
                result = self._target.receipt(stage, task.number)
                if result is not None:
                    done[task.number] = result
        todo = [task for task in tasks if task.number not in done]
        self._progress(job, stage, done, tasks)
        if job.limit is not None and stage == ("task" if job.shuffle is None else "spill"):
            runs = _limited(job, tasks, done)
        else:
            runs = run_tasks(run, job, todo, self._workers, keep)
        for result in runs:
            self._target.write_receipt(stage, result)
            done[result.number] = result
            self._progress(job, stage, done, tasks)
        return [done[number] for number in sorted(done)]

    def _progress(self, job: Job, stage: str, done: Mapping[int, Result], tasks: Sequence[object]) -> None:
        if self._report is None:
            return
        bytes_done = sum(result.input_bytes for result in done.values())
        if job.shuffle is not None:  # each pass is half of the work
            bytes_done = (
                bytes_done // 2
                if stage == "spill"
                else (self._total_bytes + self._total_bytes * len(done) // max(1, len(tasks))) // 2
            )
        self._report(
            Progress(
                done_bytes=bytes_done,
                total_bytes=self._total_bytes,
                samples=sum(result.samples for result in done.values()),
                rejected=sum(len(result.rejects) for result in done.values()),
                done_tasks=len(done),
                total_tasks=len(tasks),
                seconds=time.monotonic() - self._started,
            )
        )


def _limited(job: Job, tasks: Sequence[Any], done: Mapping[int, Result]) -> Iterable[Result]:
    # The first N samples in the order of the input: each task must know what those before it gave.
    left = job.limit or 0
    for task in tasks:
        result = done.get(task.number)
        if result is None:
            if left <= 0:
                return
            result = run(replace(job, limit=left), task)
            yield result
        left -= result.samples
