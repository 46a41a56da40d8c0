"""Attempts at tasks in batches: what is done, what is lost, and what another worker should do, too."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shardstream.errors import CommitError, StorageError
from shardstream.format.shown import counted
from shardstream.packing.engines.batch import Answer
from shardstream.packing.engines.pace import MOST_COPIES, Pace, may_copy
from shardstream.packing.work import work_of
from shardstream.storage.store import redact

__all__ = ["MOST_KILLS", "Flight", "Work", "WorkerLostError", "failed", "lost", "slow_ones"]

MOST_KILLS = 3  # workers that may die in the same task
_MOST_LOST_NODES = 10  # a machine may be taken away at any time, but not ten times with the same task
_LONGEST_PAUSE = 16.0


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


@dataclass(slots=True)
class Work:
    """A task that is not done.

    Args:
        task: The task.
        failures: How often a store failed in it.
        kills: How many workers died with it, when no other one had it.
        deaths: How many died with it in all.
        lost_nodes: How many machines were lost with it.
        avoid: The machines where a store failed.
        due: When it may be tried again, in the seconds of time.monotonic.
        later: When there may be another attempt beside one that is on its way.
        flying: How many batches have it.
        copies: How many further attempts were made, beside one that was on its way.
        done: Whether there is a result.
    """

    task: Any
    failures: int = 0
    kills: int = 0
    deaths: int = 0
    lost_nodes: int = 0
    avoid: tuple[str, ...] = ()
    due: float = 0.0
    later: float = 0.0
    flying: int = 0
    copies: int = 0
    done: bool = False


@dataclass(slots=True)
class Flight:
    """A batch on its way.

    Args:
        batch: Its tasks.
        began: Since when a worker has it, about; None while it waits for one.
    """

    batch: list[Work]
    began: float | None = None

    def left(self) -> list[Work]:
        """What nobody has done."""
        return [work for work in self.batch if not work.done]


def slow_ones(flying: Mapping[Hashable, Flight], pace: Pace, idle: int, now: float) -> Iterator[list[Work]]:
    """Batches of tasks that are slow, for workers that have nothing to do; the slowest first.

    Args:
        flying: What is on its way.
        pace: How long tasks take.
        idle: How many such workers there are.
        now: The seconds of time.monotonic.
    """
    late: list[tuple[float, list[Work]]] = []
    for flight in flying.values():
        if flight.began is None:
            continue
        limit = pace.limit(len(flight.batch), sum(work_of(work.task) for work in flight.batch))
        if now - flight.began > limit and (some := [work for work in flight.left() if _may_fly(work, now)]):
            late.append((flight.began, some))
    for _, some in sorted(late, key=lambda each: each[0]):
        # One for each idle worker, so that the tasks of a slow batch are not one after another again.
        size = -(-len(some) // max(1, idle))
        for start in range(0, len(some), size):
            if idle <= 0:
                return
            idle -= 1
            yield some[start : start + size]


def _may_fly(work: Work, now: float) -> bool:
    """Whether another attempt makes sense. What has killed a worker is not given to two at a time."""
    copied = work.copies >= MOST_COPIES or work.deaths
    return work.flying == 1 and not copied and work.later <= now and may_copy(work.task)


def lost(batch: Iterable[Work], alone: bool, error: WorkerLostError, pace: Pace) -> list[Work]:
    """Count the loss of a worker; returns what is to be done again.

    Args:
        batch: What the worker had, and nobody has done.
        alone: Whether it had nothing else, so that it is seen which task is at fault.
        error: How it was lost.
        pace: How long tasks take.

    Raises:
        StorageError: A task has lost too many.
    """
    again = []
    for work in batch:
        work.deaths += 0 if error.with_node else error.workers
        if work.flying:  # another attempt goes on; both may have died of the same
            _put_off(work, pace)
            continue
        if error.with_node:
            work.lost_nodes += 1
        else:
            work.kills += error.workers
        if work.kills >= MOST_KILLS and alone:
            raise StorageError(
                f"{_named(work.task)}: {counted(work.kills, 'worker')} died in it ({error}). Were they out "
                "of memory? Then run fewer at a time, or make shard_size smaller"
            ) from error
        if work.lost_nodes >= _MOST_LOST_NODES:
            raise StorageError(
                f"{_named(work.task)}: {counted(work.lost_nodes, 'machine')} were lost while it ran ({error})"
            ) from error
        again.append(work)
    return again


def failed(work: Work, answer: Answer, retries: int, pace: Pace) -> None:
    """Note an error, after which the work is tried again. Raises the error if that would not help."""
    error = answer.error
    assert error is not None
    # Another packer at work stays there, wherever a task is tried.
    if not isinstance(error, StorageError) or isinstance(error, CommitError):
        raise error
    work.due = time.monotonic() + min(_LONGEST_PAUSE, 2.0**work.failures)
    work.avoid = (*work.avoid, answer.node)
    if work.flying:  # another attempt goes on
        _put_off(work, pace)
        return
    if work.failures >= retries:
        raise error
    work.failures += 1


def _put_off(work: Work, pace: Pace) -> None:
    """Let the attempt that is left have some time: a store that fails now most often fails again at once."""
    work.later = time.monotonic() + pace.limit(1, work_of(work.task))


def _named(task: Any) -> str:
    """A task for messages: its number, and the first of its files."""
    number, files = getattr(task, "number", None), getattr(task, "files", ())
    name = repr(task) if number is None else f"{type(task).__name__.strip('_').lower()} {number}"
    if not files:
        return name
    span, more = files[0], f" and {counted(len(files) - 1, 'file')} more" if len(files) > 1 else ""
    return f"{name} ({redact(span.url)}, bytes {span.start:,} to {span.end:,}{more})"
