"""Gives tasks to the workers of a cluster in batches, and gives lost ones to other workers.

It knows nothing of the cluster but a `Crew`, so that all engines try again in the same way.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from shardstream.errors import OptionError, StorageError
from shardstream.packing.engines.attempts import Flight, Work, WorkerLostError, failed, lost, slow_ones
from shardstream.packing.engines.batch import Answer
from shardstream.packing.engines.engine import Counts
from shardstream.packing.engines.pace import Pace, longest_first
from shardstream.packing.work import work_of

__all__ = ["Crew", "dispatched", "room"]

_BATCH_SECONDS = 30.0  # clusters take some milliseconds to start a batch, and up to seconds for a new worker
_LOOK = 1.0  # seconds until the crew is looked at again
_ALONE = 600.0  # seconds without any machine, in which a cluster may grow
_WEIGHT = 0.2  # of the last batch in the running average
log = logging.getLogger("shardstream.packing")


class Crew(Protocol):
    """The workers of a cluster."""

    def capacity(self) -> int:
        """How many batches can run at a time now."""
        ...

    def spare(self) -> int:
        """How many more batches could begin at once, as far as it is known: others may use the cluster."""
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

    def drop(self, handle: Any) -> None:
        """Begin to end a batch whose answer nobody needs."""
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


class _Queue:
    """Tasks in order, which are taken from a plan one by one; those that came back are first."""

    def __init__(self, tasks: Sequence[Any]) -> None:
        self._back: deque[Work] = deque()
        self._rest, self._left = iter(tasks), len(tasks)

    def __len__(self) -> int:
        return len(self._back) + self._left

    def popleft(self) -> Any:
        if self._back:
            return self._back.popleft()
        self._left -= 1
        return next(self._rest)

    def extendleft(self, works: Iterable[Work]) -> None:
        self._back.extendleft(works)


def dispatched(
    crew: Crew, tasks: Sequence[Any], workers: int | None, retries: int, counts: Counts
) -> Iterator[Any]:
    """Yield the result of every task once, in the order in which they end.

    The longest tasks are begun first. If `counts.copies` says so, idle workers make a second attempt at
    tasks that are slow, see `pace`. The first result counts, and the other attempt is ended.

    Args:
        crew: The workers.
        tasks: The tasks.
        workers: How many batches run at a time. None: as many as the crew can.
        retries: How often a task is tried again if a store fails in it.
        counts: What happens is counted here. Its `copies` says whether a task may be done twice at once.

    Raises:
        OptionError: A machine cannot do the job.
        StorageError: A store failed too often, a task killed too many workers, or there are no workers.
        Exception: The first other error of a task.
    """
    new = _Queue(longest_first(tasks))  # those that came back are of the kind Work
    again: list[Work] = []  # these run one by one, so that it is seen which of them is at fault
    sent = _Sent(crew)
    pace = Pace()
    seconds = 0.0  # of a task: a running average
    last_seen = time.monotonic()
    try:
        while new or again or sent.flying:
            now, capacity = time.monotonic(), crew.capacity()
            most = room(workers, capacity)
            last_seen = now if capacity else last_seen
            if now - last_seen > _ALONE:
                why = f" ({lacks})" if (lacks := crew.lacks()) else ""
                raise StorageError(
                    f"no machine has taken a task for {_ALONE:.0f} s{why}; the same pack with resume "
                    "continues"
                )
            while len(sent.flying) < most and (batch := _next(new, again, seconds, most, now)):
                sent.send(batch)
            slots = capacity if workers is None else min(workers, capacity)
            sent.note_begun(slots, now)
            if counts.copies and not new and not any(work.due <= now for work in again):
                counts.retried += sent.copy_slow(pace, slots, now)
            pause = max(0.0, min([_LOOK, *(work.due - now for work in again if work.due > now)]))
            for handle in crew.wait(list(sent.flying), pause):
                flight = sent.landed(handle)
                if flight is None:  # another attempt has just done all of it
                    continue
                try:
                    answer = crew.answer(handle)
                except WorkerLostError as error:
                    counts.lost += error.workers
                    back = lost(flight.left(), len(flight.batch) == 1, error, pace)
                    counts.retried += len(back)
                    if error.with_node:
                        new.extendleft(reversed(back))
                    else:
                        again += back
                    continue
                done = len(answer.results)
                if done:
                    mean = answer.seconds / done
                    seconds = mean if not seconds else seconds + _WEIGHT * (mean - seconds)
                for work, result in zip(flight.batch, answer.results, strict=False):
                    if not work.done:
                        pace.add(mean, work_of(work.task))
                        work.done = True
                        yield result
                left = flight.batch[done:]
                if answer.problems:
                    raise OptionError(f"node {answer.node}: {'; '.join(answer.problems)}")
                if done > len(flight.batch) or (not left) != (answer.error is None):
                    raise RuntimeError(
                        f"node {answer.node}: {done} results of {len(flight.batch)} tasks came back"
                    )
                if left and not left[0].done:
                    failed(left[0], answer, retries, pace)
                    if not left[0].flying:
                        again.append(left[0])
                        counts.retried += 1
                new.extendleft(work for work in reversed(left[1:]) if not work.done and not work.flying)
                sent.drop_done(flight)
    finally:
        sent.cancel()


class _Sent:
    """The batches on their way.

    Args:
        crew: Has them.

    Attributes:
        flying: The batches whose answers are needed, by handle.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self.flying: dict[Hashable, Flight] = {}
        self._waiting: deque[Hashable] = deque()  # those that no worker may have yet, the first one first
        self._begun = 0
        self._dropped: list[Hashable] = []
        self._looked = 0.0
        self._told = False

    def send(self, batch: list[Work]) -> None:
        avoid = batch[0].avoid if len(batch) == 1 else ()
        handle = self._crew.submit([work.task for work in batch], avoid)
        for work in batch:
            work.flying += 1
        self.flying[handle] = Flight(batch)
        self._waiting.append(handle)

    def note_begun(self, slots: int, now: float) -> None:
        """Note which batches have workers, if so many can run: those that were sent first."""
        while self._waiting and self._begun < slots:
            flight = self.flying.get(self._waiting.popleft())
            if flight is not None:
                flight.began = now
                self._begun += 1

    def landed(self, handle: Hashable) -> Flight | None:
        """Take a batch that has ended from those on their way; None if it is not one of them."""
        flight = self.flying.pop(handle, None)
        if flight is not None:
            self._begun -= flight.began is not None
            for work in flight.batch:
                work.flying -= 1
        return flight

    def copy_slow(self, pace: Pace, slots: int, now: float) -> int:
        """Send the tasks that are slow to idle workers, too; returns how many."""
        copied = 0
        if now - self._looked < _LOOK:
            return copied
        self._looked = now
        late = list(slow_ones(self.flying, pace, max(1, slots - len(self.flying)), now))
        idle = min(slots - len(self.flying), self._crew.spare()) if late else 0
        if late and idle <= 0 and not self._told:
            self._told = True
            log.warning(
                "tasks take more than three times as long as usual, and no worker is idle to do them, too: "
                "others may have the workers, or attempts hang that the executor cannot end"
            )
        for batch in late[: max(0, idle)]:
            for work in batch:
                work.copies += 1
            self.send(batch)
            copied += len(batch)
        return copied

    def drop_done(self, ended: Flight) -> None:
        """End the other attempts at what a batch has done, unless something of them is not done."""
        if not any(work.flying for work in ended.batch):
            return
        for handle, flight in list(self.flying.items()):
            if not flight.left():
                self.landed(handle)
                self._dropped.append(handle)
                self._crew.drop(handle)

    def cancel(self) -> None:
        """End all of them."""
        self._crew.cancel([*self.flying, *self._dropped])


def _next(new: _Queue, again: list[Work], seconds: float, most: int, now: float) -> list[Work] | None:
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
    return [work if isinstance(work, Work) else Work(work) for work in (new.popleft() for _ in range(size))]
