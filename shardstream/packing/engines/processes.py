"""The engine of one machine: worker processes; see `local` for how they work."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardstream.cores import cores
from shardstream.errors import CommitError, StorageError
from shardstream.packing.engines.attempts import MOST_KILLS
from shardstream.packing.engines.engine import Counts, Needs
from shardstream.packing.engines.exits import exits_are_errors
from shardstream.packing.engines.local import Worker, WorkerDiedError
from shardstream.packing.engines.pace import MOST_COPIES, Pace, longest_first, may_copy
from shardstream.packing.work import work_of
from shardstream.storage.secrets import redact

__all__ = ["Local", "run_tasks"]

_JOIN_TIMEOUT = 10.0
_LOOK = 1.0  # seconds after which an idle worker looks again for a task that has become slow


@dataclass(frozen=True)
class Local:
    """Tasks run in processes of this machine, one for each core if `workers` is not given."""

    shared = False

    @contextlib.contextmanager
    def started(self, needs: Needs) -> Iterator[_Processes]:
        """See `Engine.started`. The processes start with the first task, and end with the last one."""
        yield _Processes(needs.workers or cores())


@dataclass
class _Processes:
    workers: int
    counts: Counts = field(default_factory=lambda: Counts(nodes=1))

    def run(
        self,
        function: Callable[[Any, Any], Any],
        job: object,
        tasks: Sequence[Any],
        inherited: Sequence[int] = (),
    ) -> Iterator[Any]:
        return run_tasks(function, job, tasks, self.workers, inherited, self.counts)


def run_tasks(
    function: Callable[[Any, Any], Any],
    job: object,
    tasks: Sequence[Any],
    workers: int,
    inherited: Sequence[int] = (),
    counts: Counts | None = None,
) -> Iterator[Any]:
    """Yield function(job, task) for every task, in the order in which they end.

    The longest tasks are begun first. A worker that dies is replaced, and its task is given to the new one.
    If `counts.copies` says so, a worker that has no task any more makes a second attempt at one that is slow,
    see `pace`; when one of both has a result, the process of the other one is killed.

    Args:
        function: A function in a module that workers can import.
        job: The first argument of each call. It is pickled once for each worker.
        tasks: The second argument of each call.
        workers: How many processes work. With one worker or one task, the calls are made in this process,
            and in the order of the tasks.
        inherited: File descriptors that workers inherit.
        counts: Workers that died are counted here, and the tasks that others got.

    Raises:
        OptionError: An argument cannot be sent to another process.
        StorageError: Three workers died in the same task.
        Exception: The first error of a call. All workers are stopped.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            with exits_are_errors():
                result = function(job, task)
            yield result
        return
    pool = _Pool(lambda: Worker(function, job, inherited), longest_first(tasks), counts or Counts())
    try:
        pool.start(min(workers, len(tasks)))
        for _ in range(len(tasks)):
            done, answer = pool.answers.get()
            if not done:
                raise answer
            yield answer
    finally:
        pool.stop()


@dataclass(slots=True)
class _Running:
    """A task that some worker has.

    Args:
        began: When, in the seconds of time.monotonic.
        workers: Who has it.
        work: Its bytes, see `work_of`.
        alone: Whether there may be no other attempt beside one.
        kills: How many workers died with it, when no other one had it.
        deaths: How many died with it in all.
        copies: How many further attempts were made, beside one that was running.
        later: When there may be another one.
    """

    began: float
    workers: list[Worker]
    work: int
    alone: bool
    kills: int = 0
    deaths: int = 0
    copies: int = 0
    later: float = 0.0


class _Pool:
    """Worker processes, each with a thread that gives it tasks.

    Args:
        worker: Starts a worker.
        tasks: The tasks, in the order in which they are begun.
        counts: What happens is counted here.

    Attributes:
        answers: (True, a result), once for each task; or (False, an error).
    """

    def __init__(self, worker: Callable[[], Worker], tasks: Sequence[Any], counts: Counts) -> None:
        self.answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._worker, self._tasks, self._counts = worker, tasks, counts
        self._changed = threading.Condition()  # guards all below
        self._begun = 0  # how many tasks
        self._running: dict[int, _Running] = {}
        self._pace = Pace()
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._ended = False

    def start(self, workers: int) -> None:
        for _ in range(workers):
            self._workers.append(self._worker())
            self._threads.append(threading.Thread(target=self._feed, args=(self._workers[-1],), daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """End all workers, whatever they do."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.stop()
        deadline = time.monotonic() + _JOIN_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _feed(self, worker: Worker) -> None:
        try:
            while (number := self._next(worker)) is not None:
                worker = self._attempted(worker, number)
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            self.answers.put((False, error))

    def _next(self, worker: Worker) -> int | None:
        """The task that a worker gets; None if there will be none any more."""
        with self._changed:
            while not self._ended:
                if self._begun < len(self._tasks):
                    task = self._tasks[self._begun]
                    alone = not (self._counts.copies and may_copy(task))
                    self._running[self._begun] = _Running(time.monotonic(), [worker], work_of(task), alone)
                    self._begun += 1
                    return self._begun - 1
                if not self._running:
                    break
                number, pause = self._slow()
                if number is not None:
                    self._running[number].copies += 1
                    self._running[number].workers.append(worker)
                    self._counts.retried += 1
                    return number
                self._changed.wait(pause)
        return None

    def _slow(self) -> tuple[int | None, float]:
        """(a task that is slow, and that only one worker has; else None; when to look again)"""
        now, pause = time.monotonic(), _LOOK
        for number, running in self._running.items():
            # What has killed a worker is not given to two at a time.
            if running.alone or len(running.workers) != 1 or running.copies >= MOST_COPIES or running.deaths:
                continue
            limit = self._pace.limit(1, running.work)
            left = max(running.began + limit, running.later) - now
            if left <= 0:
                return number, 0.0
            pause = min(pause, left)
        return None, pause

    def _attempted(self, worker: Worker, number: int) -> Worker:
        """Let a worker do a task; returns it, or the one that took its place."""
        task, answer, error = self._tasks[number], None, None
        if worker.ended and (worker := self._replaced(worker, number)).ended:
            return worker
        began = time.monotonic()
        try:
            answer = worker.call(task)
        except Exception as raised:  # noqa: BLE001 - raised again, if it counts
            error = raised
        with self._changed:
            running = self._running.get(number)
            died = isinstance(error, WorkerDiedError)
            worker.ended |= died
            if running is None or self._ended:  # another attempt was first
                return worker
            if error is None:
                self._finish(number, worker, time.monotonic() - began)
                self.answers.put((True, answer))
                return worker
            temporary = isinstance(error, StorageError) and not isinstance(error, CommitError)
            if not died and not (temporary and len(running.workers) > 1):
                raise error
            running.later = time.monotonic() + self._pace.limit(1, running.work)
            running.deaths += died
            self._counts.lost += died
            if len(running.workers) > 1:  # the other attempt goes on
                running.workers.remove(worker)
                return worker
            running.kills += 1
            if running.kills == MOST_KILLS:
                raise StorageError(
                    f"{_named(task)}: {running.kills} workers died in it; the last: {error}"
                ) from error
            self._counts.retried += 1
            running.began = time.monotonic()
        return self._attempted(worker, number)

    def _finish(self, number: int, worker: Worker, seconds: float) -> None:
        """Note that a worker has done a task, and end the other attempt at it."""
        running = self._running.pop(number)
        for other in running.workers:
            if other is not worker:
                other.end()
        self._pace.add(seconds, running.work)
        self._changed.notify_all()

    def _replaced(self, worker: Worker, number: int) -> Worker:
        """A new worker for a task; or the one that has ended, if the task does without it."""
        worker.stop()
        with self._changed:
            running = self._running.get(number)
            if running is None or self._ended:
                return worker
            try:
                new = self._worker()
            except OSError:
                if len(running.workers) == 1:
                    raise
                # No memory, say: the other attempt goes on, and this one was not needed.
                running.workers.remove(worker)
                running.later = time.monotonic() + self._pace.limit(1, running.work)
                return worker
            self._workers[self._workers.index(worker)] = new
            running.workers[running.workers.index(worker)] = new
        return new


def _named(task: Any) -> str:
    """A task, for messages: its number, and the first file that it reads."""
    files = getattr(task, "files", ())
    what = f"task {getattr(task, 'number', task)}"
    return f"{what} ({redact(files[0].url)})" if files else what
