"""The read engine: units of work in, batches out, in order.

    plan (a thread) -> fetch, decompress frames (pool) -> build batches (pool, or consumer) -> deliver

Each plan is asked for by the consumer, so that no thread outlives its iterator. When the generator is closed
or dropped, tasks that are queued or that wait for a store are cancelled. A thread that decodes or transforms
ends after the sample that it is at.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from shardstream.counters.layout import slot
from shardstream.counters.recorder import listening, put
from shardstream.errors import StorageError
from shardstream.read.engine.building import Builder, Built, delivered
from shardstream.read.engine.following import Following
from shardstream.read.engine.frames import FrameId, FramesInMemory
from shardstream.read.engine.stats import Stats
from shardstream.read.engine.tasks import News, Pool, Task
from shardstream.read.engine.timing import QUICK, UNTIMED, Times, timed_fetch, together
from shardstream.read.engine.units import Budget, Source, Unit
from shardstream.storage.cancellation import Cancelled, CancelScope, current, working_for

__all__ = ["stream"]

T = TypeVar("T")

_DEPTH = 16  # how many units may be on their way
_UNKNOWN = 2  # how many units that grow may be on their way while their size is unknown
_PLANNED = 0.001  # seconds of planning after which the consumer gets the units so far
_LOOK = 2  # which units a look takes batches of: what copies to a device is one batch ahead of the consumer
_POLL = 0.5  # seconds
# Bytes of frame buffers that may wait to be used again although the shuffle's frames fill their part, and the
# part of `prefetch` that they take at most. The next frames take them: fresh buffers cost page faults.
_REUSED, _REUSED_PART = 32 << 20, 2
_WAITING = slot("waiting_since")


@dataclass
class _Plan:
    """Units that were planned, what went wrong behind them, and whether they are the last ones."""

    units: list[Unit]
    error: BaseException | None
    over: bool


@dataclass
class _Pending(Generic[T]):
    """A unit on its way.

    Attributes:
        unit: The unit.
        frames: The tasks that fetch its frames.
        work: The task that builds its batches. If the consumer builds them: the task that prepares the unit,
            or None.
        fetched: The bytes of the frames that were fetched for this unit first.
        left: How many of its batches are not delivered.
    """

    unit: Unit
    frames: dict[FrameId, Task[Any]]
    work: Task[Built[T] | None] | None
    fetched: int
    left: int

    def busy(self) -> bool:
        """Whether a thread may be reading its frames, or does not end yet although it failed."""
        return self.work is not None and (not self.work.done or self.work.error is not None)

    def ready(self) -> bool:
        """Whether the batches can be delivered."""
        if self.work is not None and not self.work.done:
            return False
        return not self.unit.direct or all(task.done for task in self.frames.values())


def stream(
    source: Source,
    units: Iterable[Unit],
    finish: Callable[[Any], T],
    budget: Budget | None = None,
    stats: Stats | None = None,
    singles: bool = False,
    following: Following | None = None,
    near: bool = False,
) -> Generator[T, None, None]:
    """The batches of all units, in order.

    Args:
        source: Where frames come from.
        units: What to build.
        finish: From the items of a batch to the batch.
        budget: Limits in bytes, threads and seconds.
        stats: The counters to add to.
        singles: Whether a batch that cannot be built comes item by item, up to the item that fails.
        following: What follows; it begins when all units have begun.
        near: Whether planning does not wait for a store. Then the first batch has the processors to itself:
            what is behind its unit is planned when the frames of the unit are there; or, if the consumer
            builds it, when its first batch is there. What is planned then begins between the unit's
            batches. Else it is planned when the frames are asked for, so that the connections are theirs
            first.

    Raises:
        Exception: An error of any stage is raised in its place, when all batches before it were yielded.
    """
    limits, counts = budget or Budget(), stats or Stats()
    return _Flow(source, units, finish, limits, counts, singles, following, near).batches()


class _Flow(Generic[T]):
    """One stream: its threads, and the units that are on their way."""

    def __init__(
        self,
        source: Source,
        units: Iterable[Unit],
        finish: Callable[[Any], T],
        budget: Budget,
        stats: Stats,
        singles: bool,
        following: Following | None,
        near: bool = False,
    ) -> None:
        self._source, self._budget, self._stats = source, budget, stats
        self._following = following
        self._near = near
        # Whether the next plan ends behind its first unit; and whether no plan has begun after that one.
        self._first, self._held = True, False
        self._scope, self._news = CancelScope(), News()
        self._scope.recorder = stats.recorder
        small = budget.prefetch // (4 * _DEPTH)
        self._builder = Builder(source, finish, budget, stats, singles, self._scope, self._news, small)
        self._planner = Pool("shardstream-plan", 1, self._scope, self._news, self)
        self._fetchers = Pool("shardstream-fetch", budget.threads, self._scope, self._news, self)
        self._builders = Pool("shardstream-build", budget.threads, self._scope, self._news, self)
        self._frames: FramesInMemory[Any] = FramesInMemory(
            timed_fetch(source, stats),
            source.recycle,
            self._fetchers,
            following.begin(source, self._planner, budget) if following is not None else None,
        )
        self._pending: deque[_Pending[T]] = deque()
        self._head: _Pending[T] | None = None  # the unit that is being delivered
        self._idle_batches = 0  # bytes of batch buffers that may wait to be used again
        self._fetched = 0  # bytes of the frames that were fetched for pending units and the head
        self._units = iter(units)
        self._planned: deque[Unit] = deque()  # units that are planned and not begun
        self._plan: Task[_Plan]
        self._planning = True
        self._times = Times(stats)
        self._heads = self._begun = 0  # how many units have been the head, and their batches
        self._outer, self._process = current(), os.getpid()

    def batches(self) -> Generator[T, None, None]:
        """All batches. The threads end when this generator ends."""
        stats, clock, closed = self._stats, time.monotonic, False
        try:
            self._scope.idle_threads = self._builders
            self._plan = self._planner.submit(self._some)
            while True:
                self._times.waited = self._until(self._ready)
                if not self._pending:
                    if (error := self._plan.result().error) is not None:
                        raise error
                    self._source.check_again()
                    self._limit(stats.queue_depth)
                    if self._following is not None:  # last: what it gives away is not used again here
                        self._following.end(self._frames)
                    return
                ready = sum(item.ready() for item in self._pending)
                head = self._head = self._pending.popleft()
                self._heads += 1
                self._begun += len(head.unit.sizes)
                stats.add(frames=self._frames.fetched, decompressed_bytes=self._frames.fetched_bytes)
                self._frames.fetched = self._frames.fetched_bytes = 0
                for _ in range(len(self._scope.met)):
                    stats.add(**{self._scope.met.popleft(): 1})
                if not head.unit.direct:
                    self._release(head)
                head.left -= 1  # the first batch, which the consumer is about to get
                self._limit(ready)
                self._admit()  # so that the threads have work while the consumer computes
                begun = asked = now = clock()
                count, untimed, built = 0, 0, 0.0
                due = begun + together()
                alone = self._held  # nothing is on its way behind this unit, which may be a long one
                for batch, samples in self._of(head):
                    stats.batches += 1  # not by `add`: a call for each batch would be felt
                    stats.samples += samples
                    count += 1
                    asked = now
                    if self._held:
                        self._plan_on()
                    if untimed:
                        untimed -= 1
                        yield batch
                        now = clock()
                    else:
                        given = clock()
                        if given > due:
                            stats.tell_process()
                        yield batch
                        now = clock()
                        built = given - asked
                        untimed = min(UNTIMED, int(QUICK / (now - asked + 1e-9)))
                    if now > due:
                        begun = now = self._spend(head, count, begun, built, asked)
                        count, untimed, due = 0, 0, begun + together()
                    head.left -= 1
                    if alone and self._plan.done:
                        self._admit()
                        alone = self._planning and not self._pending
                    del batch
                if count:
                    self._spend(head, count, begun, built, asked)
                if head.unit.direct:
                    self._release(head)
                self._head = None
                del head
        except GeneratorExit:
            closed = True
            raise
        finally:
            stats.tell_process()
            if os.getpid() == self._process:  # in a fork the threads belong to the parent
                self._scope.end()
                for pool in (self._planner, self._fetchers, self._builders):
                    pool.end()
                stats.let_go()
                self._scope.idle_threads = None
                if closed and self._following is not None:
                    self._leave(self._following)

    def _leave(self, following: Following) -> None:
        """The consumer has closed or dropped the generator, which is at a batch; its threads get no tasks.

        The garbage collector may do so at any moment. So this takes no lock: no buffer is given back to its
        pool, and no file is looked at. Who takes the frames looks at their files.
        """
        head = self._head
        if head is None:
            return
        if self._begun - head.left == following.batches:
            # A loop that counts its batches never asks for the end; that all is planned may not be known yet.
            following.end(self._frames)
        elif self._heads <= _LOOK:
            busy = (item for item in (head, *self._pending) if item.busy())
            following.put_back(self._frames, {frame for item in busy for frame in item.frames})

    def _ready(self) -> bool:
        """Begin units if there is room, and say whether the consumer can go on."""
        self._admit()
        return self._pending[0].ready() if self._pending else not self._planning

    def _some(self) -> _Plan:
        """The next units, as many as are planned within a moment. Runs in a thread."""
        plan, until = _Plan([], None, False), time.monotonic() + _PLANNED
        try:
            while len(plan.units) < _DEPTH:
                unit = next(self._units, None)
                if unit is None:
                    plan.over = True
                    break
                plan.units += self._pieces(unit)
                if self._first or time.monotonic() > until:
                    break
        except BaseException as error:  # noqa: BLE001 - raised in its place, behind these units
            plan.error, plan.over = error, True
        return plan

    def _pieces(self, unit: Unit) -> Sequence[Unit]:
        """The unit; or a unit for each of its batches, if its frames need more than half of the limits."""
        most = (self._budget.keep + self._budget.prefetch) // 2
        return (sum(need.size for need in unit.needs) > most and unit.parts(False)) or [unit]

    def _admit(self) -> None:
        """Begin the units that are planned, as far as there is room."""
        while True:
            if self._held and self._begun_first():
                self._plan_on()
            if self._planning and not self._held and self._plan.done and not self._planned:
                plan = self._plan.result()
                self._planned += plan.units
                self._planning = not plan.over
                self._held, self._first = self._first, False
                if self._planning and not self._held:
                    self._plan = self._planner.submit(self._some)
            if not self._planned or not self._room(self._planned[0]):
                if self._following is not None:
                    self._following.go_on(self._frames, bool(self._planned), self._planning)
                return
            unit = self._planned.popleft()
            before = self._frames.fetched_bytes
            with working_for(self._scope):
                self._source.fetch_ahead(self._frames.missing(unit.needs))
            tasks = {need.frame: self._frames.use(need) for need in unit.needs}
            work: Task[Any] | None = None
            if not unit.direct:
                work = self._builders.submit(partial(self._builder.build, unit, tasks))
            elif unit.unverified:
                work = self._fetchers.submit(unit.prepare)
            fetched = self._frames.fetched_bytes - before
            self._fetched += fetched
            self._pending.append(_Pending(unit, tasks, work, fetched, len(unit.sizes)))

    def _begun_first(self) -> bool:
        """Whether the first unit is served: what is planned behind it takes neither its place nor its time.

        Its frames are asked for; if all is near, a thread has them and builds it.
        """
        if not self._pending:
            return self._head is None and not self._planned
        head = self._pending[0]
        return not self._near or (not head.unit.direct and all(task.done for task in head.frames.values()))

    def _plan_on(self) -> None:
        """Plan what is behind the first unit."""
        self._held = False
        if self._planning:
            self._plan = self._planner.submit(self._some)

    def _room(self, unit: Unit) -> bool:
        """Whether there is room to begin a unit."""
        if not self._pending:
            return True
        if len(self._pending) >= _DEPTH:
            return False
        budget = self._budget
        built = sum(map(self._charged, self._pending))
        if self._head is not None:
            built += self._charged(self._head)
        ahead = self._fetched + built
        if not unit.grows:
            room = ahead < budget.prefetch
        elif self._builder.expected is None:
            room = len(self._pending) < _UNKNOWN
        else:
            room = ahead + self._charge(unit, None) <= budget.prefetch
        # Frames that were fetched for earlier units, and are read again, count in `keep`.
        return room and built + self._frames.in_use_with(unit.needs) <= budget.prefetch + budget.keep

    def _release(self, item: _Pending[T]) -> None:
        """Let go of the frames of a unit. Frames that other units will read stay in memory."""
        # The limit of idle memory was set while these frames were in use. What they give back was in memory
        # until now: it may wait until `_limit` decides anew, and the next frames need not get fresh memory.
        self._source.limit_idle(self._budget.keep + self._fetched, self._idle_batches)
        for frame in item.frames:
            self._frames.release(frame)
        self._fetched -= item.fetched
        item.fetched = 0

    def _spend(self, head: _Pending[T], count: int, begun: float, built: float, last: float) -> float:
        """Count the time of batches of a unit, see `Times.spend`; returns until when."""
        now = time.monotonic()
        link = self._builder.link(head.unit) if listening() else None
        self._times.spend(count, begun, built, last, now, head.unit.direct, link)
        return now

    def _limit(self, ready: int) -> None:
        """Free unused memory that is beyond the limits, and report in `stats` what memory is used for."""
        budget, frames = self._budget, self._frames
        frames.shrink(budget.keep + self._fetched)
        open_frames = max(0, frames.bytes - self._fetched)
        waiting = [*self._pending, *([] if self._head is None else [self._head])]
        built = sum(self._charged(item) for item in waiting if item.work is not None and item.work.done)
        self._idle_batches = max(0, budget.prefetch - self._fetched - built)
        idle_frames, idle_batches = self._source.limit_idle(
            max(budget.keep - open_frames, min(_REUSED, budget.prefetch // _REUSED_PART)), self._idle_batches
        )
        ram = self._source.memory()
        ram["limit"] = ram.get("limit", 0) + budget.keep
        ram |= {"open frames": open_frames, "idle frame buffers": idle_frames}
        prefetch = {
            "limit": budget.prefetch,
            "frames ahead": self._fetched,
            "batches": built,
            "idle batch buffers": idle_batches,
        }
        self._stats.tiers = self._source.counters()
        self._stats.hold({"ram": ram, "prefetch": prefetch}, ready)

    def _charged(self, item: _Pending[T]) -> int:
        """The bytes of the batches of a unit that are built, or will be built, and are not delivered."""
        return self._charge(item.unit, item.work) * max(0, item.left) // max(1, len(item.unit.sizes))

    def _charge(self, unit: Unit, work: Task[Built[T] | None] | None) -> int:
        """The bytes of all batches of a unit. Before they are known, it is an estimate."""
        if not unit.grows:
            return unit.volume
        if work is not None and work.done and work.error is None and (built := work.result()) is not None:
            return built.bytes
        return max(unit.volume, unit.grows * (self._builder.expected or 0) * len(unit.sizes))

    def _until(self, ready: Callable[[], bool]) -> bool:
        """Wait until `ready()` is true; returns whether it was not.

        Raises:
            StorageError: Nothing was done for longer than the deadline, or this process is a fork.
            Cancelled: The work around this iteration was ended.
        """
        if ready():
            return False
        started, delivers = time.monotonic(), self._stats.delivers
        if delivers:
            put(_WAITING, started)
        try:
            while True:
                self._news.wait(min(_POLL, self._budget.deadline))
                if ready():
                    return True
                if self._outer.over:
                    raise Cancelled
                if self._process != os.getpid():
                    raise StorageError("this iteration belongs to the process that began it; begin another")
                # There is no deadline for user code. A thread that builds waits for its frames with a
                # deadline of its own.
                limit = self._budget.deadline
                waits_here = not self._pending or self._pending[0].unit.direct
                if waits_here and self._news.quiet(started) > limit:
                    raise StorageError(
                        f"a batch was not ready after {limit:.0f} s; is the storage answering?"
                    )
        finally:
            self._stats.waited(started, time.monotonic())
            if delivers:
                put(_WAITING, 0)

    def _of(self, head: _Pending[T]) -> Iterator[tuple[T, int]]:
        """The batches of the unit that is being delivered: built here, or by a thread before."""
        if head.unit.direct:
            prepared = None if head.work is None else head.work.result
            return self._builder.batches(head.unit, lambda frame: head.frames[frame].result(), prepared)
        assert head.work is not None
        built = head.work.result()
        assert built is not None
        return delivered(built)
