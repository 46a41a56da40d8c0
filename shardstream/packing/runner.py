"""Runs the tasks of a pack in worker processes, and reports the progress."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shardstream.counters.layout import slot
from shardstream.counters.page import begin
from shardstream.counters.recorder import put
from shardstream.errors import CommitError
from shardstream.packing.destination import Destination
from shardstream.packing.engines.engine import Workers
from shardstream.packing.engines.exits import exits_are_errors
from shardstream.packing.job import Bucket, Job, input_bytes
from shardstream.packing.receipts import Some
from shardstream.packing.result import Result
from shardstream.packing.share import chosen
from shardstream.packing.sources import Task
from shardstream.packing.worker import run_task
from shardstream.progress import Report, Reporter
from shardstream.storage.store import redact

_TASKS, _DONE = slot("pack_tasks"), slot("pack_tasks_done")
_WRITES = ("task", "gather")  # the passes that write shards
_ROUNDS = 3  # in which tasks are done again whose shards are not right
log = logging.getLogger("shardstream.packing")


class Totals:
    """Running totals of the results so far: a sum over all results after each one would be quadratic."""

    def __init__(self) -> None:
        self.tasks = self.input_bytes = self.samples = self.rejected = 0

    def add(self, result: Result, sign: int = 1) -> None:
        """Count a result; take it back with sign -1."""
        self.tasks += sign
        self.input_bytes += sign * result.input_bytes
        self.samples += sign * result.samples
        self.rejected += sign * result.rejected


class Runner:
    """Runs the tasks of a pack in one pass; for a shuffle in two passes.

    Args:
        destination: Where receipts are stored.
        total_bytes: The bytes of the input.
        workers: Run the tasks.
        progress: Called with a Progress after each task, or None.
    """

    def __init__(
        self,
        destination: Destination,
        total_bytes: int,
        workers: Workers,
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
        """Run one pass; returns the results in the order of the tasks' numbers.

        Each task leaves a receipt. At the end of the pass that writes shards, all shards are compared with
        the receipts; a task whose shards are not right is done again. Of a part of a pack the commit does it.

        Args:
            job: The pack.
            stage: The name of the pass; see `stage_of`.
            tasks: What to do.
            continued: Whether tasks that have a receipt are left out.
            inherited: File descriptors that worker processes inherit.

        Raises:
            CommitError: It is another packer's turn at the target; or shards are changed again and again.
        """
        begin("pack", job.shown)
        done: dict[int, Result] = {}
        some = None if job.part is None else Some(job.part[0], {task.number for task in tasks})
        totals, folds = Totals(), self._destination.folds(stage, None if some is None else some.part)
        alone: set[int] = set()
        if continued:
            found, alone = self._destination.finished(stage, some)
            for task in tasks:
                result = found.get(task.number)
                # A version that cut the input otherwise has left receipts of other tasks.
                if result is not None and result.input_bytes == _input_bytes(task):
                    done[task.number] = result
                    totals.add(result)
            read = self._bytes(job, stage, totals, len(tasks)) if done else 0
            self._found_bytes = max(self._found_bytes, read)
            if some is None:  # else another process may be at the same tasks
                self._destination.forget(stage, {task.number for task in tasks if task.number not in done})
            folds.add([done[number] for number in sorted(alone & done.keys())])
        self._progress(job, stage, totals, len(tasks))
        for _ in range(_ROUNDS):
            for result in self._run(job, stage, tasks, done, inherited):
                done[result.number] = result
                totals.add(result)
                folds.add([result])
                self._progress(job, stage, totals, len(tasks))
            if some is not None:  # the commit compares the shards of all parts
                folds.close()
                return [done[number] for number in sorted(done)]
            wrong = self._destination.wrong(list(done.values())) if stage in _WRITES else set()
            if not wrong:
                return [done[number] for number in sorted(done)]
            where = redact(job.dest)
            log.warning("%s: the shards of %d tasks are not right, and are made again", where, len(wrong))
            for number in wrong:
                totals.add(done.pop(number), -1)
            self._destination.forget(stage, wrong)
        raise CommitError(
            f"{redact(job.dest)}: something else changes the shards of this pack; choose another target"
        )

    def _run(
        self,
        job: Job,
        stage: str,
        tasks: Sequence[Task | Bucket],
        done: Mapping[int, Result],
        inherited: Sequence[int],
    ) -> Iterable[Result]:
        """The results of the tasks that are not done, as they end."""
        if job.limit is not None and (job.shuffle is None or stage not in _WRITES):
            return _limited(job, tasks, dict(done))
        todo = chosen(tasks, (place for place, task in enumerate(tasks) if task.number not in done))
        self._workers.counts.copies = self._may_copy(stage)
        return self._workers.run(run_task, job, todo, inherited)

    def _may_copy(self, stage: str) -> bool:
        """Whether two attempts at a task of a pass may run at the same time.

        Only where it is sure that none of them can damage what the other one has put. Elsewhere the put of an
        attempt that is killed leaves half an object, and nobody notices it where the store tells no versions.
        """
        # The first pass over a local disk leaves two files for each task, which belong together.
        return self._destination.copies and stage != "spill"

    def _progress(self, job: Job, stage: str, totals: Totals, tasks: int) -> None:
        put(_TASKS, tasks)
        put(_DONE, totals.tasks)
        self._report(
            done_bytes=self._bytes(job, stage, totals, tasks),
            total_bytes=self._total_bytes,
            found_bytes=self._found_bytes,
            samples=totals.samples,
            rejected=totals.rejected,
            done_tasks=totals.tasks,
            total_tasks=tasks,
            nodes=self._workers.counts.nodes,
            retried=self._workers.counts.retried,
            lost=self._workers.counts.lost,
        )

    def _bytes(self, job: Job, stage: str, totals: Totals, tasks: int) -> int:
        """The input bytes of the finished tasks. Each pass of a shuffle counts as half of the work."""
        if job.shuffle is None:
            return totals.input_bytes
        if stage not in _WRITES:
            return totals.input_bytes // 2
        return (self._total_bytes + self._total_bytes * totals.tasks // max(1, tasks)) // 2


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
            with exits_are_errors():
                result = run_task(replace(job, limit=left), task)
            yield result
        left -= result.samples
