"""Gives tasks to the workers of a cluster in batches, and gives lost ones to other workers.

It knows nothing of the cluster but a `Crew`, so that all engines try again in the same way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shardstream.errors import CommitError, OptionError, StorageError
from shardstream.format.shown import counted
from shardstream.packing.engines.batch import Answer
from shardstream.packing.engines.engine import Counts
from shardstream.storage.store import redact

__all__ = ["Crew", "WorkerLostError", "dispatched", "room"]

_BATCH_SECONDS = 30.0  # clusters take some milliseconds to start a batch, and up to seconds for a new worker
_MOST_KILLS = 3
_MOST_LOST_NODES = 10  # a machine may be taken away at any time, but not ten times with the same task
_LONGEST_PAUSE = 16.0
_LOOK = 1.0  # seconds until the crew is looked at again
_ALONE = 600.0  # seconds without any machine, in which a cluster may grow
_WEIGHT = 0.2  # of the last batch in the running average


class WorkerLostError(Exception):
    """A batch got no answer, since its worker died.

    Args:
        reason: What the engine says.
        with_node: Whether the machine was lost, which is no fault of the tasks.
        workers: How many workers died with it.
    """

    def __init__(self, reason: str, with_node: bool = False, workers: int = 1) -> None:
        super().__init__(reason)
        self.with_node, self.workers = with_node, workers


class Crew(Protocol):
    """The workers of a cluster."""

    def capacity(self) -> int:
        """How many batches can run at a time now."""
        ...

    def lacks(self) -> str:
        """Why no machine has room for a batch, if none has and it is known; else an empty text."""
        ...

    def submit(self, tasks: Sequence[Any], avoid: Sequence[str]) -> Hashable:
        """Give a batch to a worker, if possible on none of these nodes; returns its handle."""
        ...

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        """The handles of the batches that have ended, after at most so many seconds."""
        ...

    def answer(self, handle: Any) -> Answer:
        """What became of a batch that has ended. Raises WorkerLostError if its worker died."""
        ...

    def cancel(self, handles: Sequence[Any]) -> None:
        """End these batches, and wait for their end for a short time."""
        ...


def room(workers: int | None, capacity: int) -> int:
    """How many batches may be on their way: for each that runs another one waits, so that no worker is idle.

    Args:
        workers: How many may run at a time. None: all that can.
        capacity: How many can run at a time.
    """
    if workers is not None and capacity > workers:
        return workers  # where more could run than may, none can wait
    return max(1, 2 * capacity)  # a cluster that can grow does so if something waits


@dataclass(slots=True)
class _Work:
    """A task that is not done.

    Args:
        task: The task.
        failures: How often a store failed in it.
        kills: How many workers died with it.
        lost_nodes: How many machines were lost with it.
        avoid: The machines where a store failed.
        due: When it may be tried again, in the seconds of time.monotonic.
    """

    task: Any
    failures: int = 0
    kills: int = 0
    lost_nodes: int = 0
    avoid: tuple[str, ...] = ()
    due: float = 0.0


class _Queue:
    """Tasks in order, which are taken from a plan one by one; those that came back are first."""

    def __init__(self, tasks: Sequence[Any]) -> None:
        self._back: deque[_Work] = deque()
        self._rest, self._left = iter(tasks), len(tasks)

    def __len__(self) -> int:
        return len(self._back) + self._left

    def popleft(self) -> Any:
        if self._back:
            return self._back.popleft()
        self._left -= 1
        return next(self._rest)

    def extendleft(self, works: Iterable[_Work]) -> None:
        self._back.extendleft(works)


def dispatched(
    crew: Crew, tasks: Sequence[Any], workers: int | None, retries: int, counts: Counts
) -> Iterator[Any]:
    """Yield the result of every task, in the order in which they end.

    Args:
        crew: The workers.
        tasks: The tasks.
        workers: How many batches run at a time. None: as many as the crew can.
        retries: How often a task is tried again if a store fails in it.
        counts: What happens is counted here.

    Raises:
        OptionError: A machine cannot do the job.
        StorageError: A store failed too often, a task killed too many workers, or there are no workers.
        Exception: The first other error of a task.
    """
    new = _Queue(tasks)  # those that came back are of the kind _Work
    again: list[_Work] = []  # these run one by one, so that it is seen which of them is at fault
    flying: dict[Hashable, list[_Work]] = {}
    seconds = 0.0  # of a task: a running average
    last_seen = time.monotonic()
    try:
        while new or again or flying:
            now, capacity = time.monotonic(), crew.capacity()
            most = room(workers, capacity)
            last_seen = now if capacity else last_seen
            if now - last_seen > _ALONE:
                why = f" ({lacks})" if (lacks := crew.lacks()) else ""
                raise StorageError(
                    f"no machine has taken a task for {_ALONE:.0f} s{why}; the same pack with resume "
                    "continues"
                )
            while len(flying) < most and (batch := _next(new, again, seconds, most, now)):
                handle = crew.submit([work.task for work in batch], _avoided(batch))
                flying[handle] = batch
            pause = max(0.0, min([_LOOK, *(work.due - now for work in again if work.due > now)]))
            for handle in crew.wait(list(flying), pause):
                batch = flying.pop(handle)
                try:
                    answer = crew.answer(handle)
                except WorkerLostError as error:
                    counts.lost += error.workers
                    counts.retried += len(batch)
                    _count_loss(batch, error)
                    if error.with_node:
                        new.extendleft(reversed(batch))
                    else:
                        again += batch
                    continue
                done = len(answer.results)
                if done:
                    mean = answer.seconds / done
                    seconds = mean if not seconds else seconds + _WEIGHT * (mean - seconds)
                yield from answer.results
                left = batch[done:]
                if answer.problems:
                    raise OptionError(f"node {answer.node}: {'; '.join(answer.problems)}")
                if done > len(batch) or (not left) != (answer.error is None):
                    raise RuntimeError(f"node {answer.node}: {done} results of {len(batch)} tasks came back")
                if answer.error is not None:
                    again.append(_failed(left[0], answer, retries))
                    counts.retried += 1
                    new.extendleft(reversed(left[1:]))
    finally:
        crew.cancel(list(flying))


def _next(new: _Queue, again: list[_Work], seconds: float, most: int, now: float) -> list[_Work] | None:
    """The next batch; None if there is none at the moment."""
    for position, work in enumerate(again):
        if work.due <= now:
            return [again.pop(position)]
    if not new:
        return None
    size = 1 if not seconds else int(_BATCH_SECONDS / seconds) + 1
    # At the end batches become small, so that the last one is not waited for.
    size = max(1, min(size, len(new) // max(1, most)))
    # Made when they are taken: most of millions of tasks never fail.
    return [work if isinstance(work, _Work) else _Work(work) for work in (new.popleft() for _ in range(size))]


def _avoided(batch: Sequence[_Work]) -> tuple[str, ...]:
    return batch[0].avoid if len(batch) == 1 else ()


def _count_loss(batch: Sequence[_Work], error: WorkerLostError) -> None:
    for work in batch:
        if error.with_node:
            work.lost_nodes += 1
        else:
            work.kills += error.workers
        if work.kills >= _MOST_KILLS and len(batch) == 1:
            raise StorageError(
                f"{_named(work.task)}: {counted(work.kills, 'worker')} died in it ({error}). Were they out "
                "of memory? Then run fewer at a time, or make shard_size smaller"
            ) from error
        if work.lost_nodes >= _MOST_LOST_NODES:
            raise StorageError(
                f"{_named(work.task)}: {counted(work.lost_nodes, 'machine')} were lost while it ran ({error})"
            ) from error


def _failed(work: _Work, answer: Answer, retries: int) -> _Work:
    """The work, to be tried again. Raises its error if that would not help."""
    error = answer.error
    assert error is not None
    # Another packer at work stays there, wherever a task is tried.
    if not isinstance(error, StorageError) or isinstance(error, CommitError):
        raise error
    if work.failures >= retries:
        raise error
    work.due = time.monotonic() + min(_LONGEST_PAUSE, 2.0**work.failures)
    work.failures += 1
    work.avoid = (*work.avoid, answer.node)
    return work


def _named(task: Any) -> str:
    """A task for messages: its number, and the first of its files."""
    number, files = getattr(task, "number", None), getattr(task, "files", ())
    name = repr(task) if number is None else f"{type(task).__name__.strip('_').lower()} {number}"
    if not files:
        return name
    span, more = files[0], f" and {counted(len(files) - 1, 'file')} more" if len(files) > 1 else ""
    return f"{name} ({redact(span.url)}, bytes {span.start:,} to {span.end:,}{more})"
