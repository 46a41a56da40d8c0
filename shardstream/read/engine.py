"""The read engine: units of work in, batches out, in order.

    plan (a thread) -> fetch, decompress frames (pool) -> build batches (pool, or consumer) -> deliver

The consumer asks for the next plan each time it has taken one, so that no thread outlives its iterator:
when the generator is closed or dropped, what is queued or waits for a store is cancelled and the threads end.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from shardstream.errors import StorageError
from shardstream.read.prefetch import FrameId, Frames, Need
from shardstream.storage.waits import Waits, work_for, working_for

__all__ = ["Budget", "Source", "Stats", "Unit", "stream"]

T = TypeVar("T")

_DONE: Future[Any] = Future()
_DONE.set_result(None)
# How many units may be built ahead: decoded batches can be many times larger than their frames.
_DEPTH = 16


@dataclass(frozen=True)
class Budget:
    """Limits: bytes of look-ahead, bytes of idle frames, threads, seconds to wait.

    Look-ahead is what is fetched and built for units that are not delivered. Frames that were fetched
    for delivered units and that later ones read again are not counted in it: a shuffle has them open,
    lanes x window of them, whatever is planned ahead.
    """

    prefetch: int = 256 << 20
    keep: int = 1 << 30
    threads: int = field(default_factory=lambda: min(16, os.cpu_count() or 1))
    deadline: float = 600.0


@dataclass
class Stats:
    """Counters of one loader over its life."""

    batches: int = 0
    samples: int = 0
    frames: int = 0
    bytes_read: int = 0
    wait_seconds: float = 0.0
    fetch_seconds: float = 0.0
    build_seconds: float = 0.0
    queue_depth: int = 0
    damaged: int = 0
    tiers: dict[str, Any] = field(default_factory=dict)


class Unit(Protocol):
    """Work for one thread: some consecutive batches."""

    @property
    def needs(self) -> Sequence[Need]:
        """The frames it reads, in the order in which they should be fetched."""

    @property
    def sizes(self) -> Sequence[int]:
        """The samples of each batch."""

    @property
    def volume(self) -> int:
        """The bytes of what is there before it is delivered, beside the frames that it needs; roughly."""

    @property
    def direct(self) -> bool:
        """Whether the consumer builds it, batch by batch, once its frames are there and `prepare` has run."""

    @property
    def unverified(self) -> Sequence[FrameId]:
        """The frames that it reads where they lie and that were not verified before."""

    def prepare(self) -> None:
        """Verify them, which may take long; run by a thread before a direct build."""

    def build(self, frames: Mapping[FrameId, Any]) -> Iterable[Any]:
        """The items of each batch, from the buffers of the frames that it needs."""


class Source(Protocol):
    """Where the buffers of frames come from, and go to when nobody needs them."""

    def expect(self, frames: Sequence[FrameId], /) -> None:
        """These are going to be fetched, in this order; returns at once."""

    def counters(self) -> dict[str, Any]:
        """Where bytes came from so far; empty where there is but one place."""

    def fetch(self, shard: int, frame: int, /) -> Any: ...
    def recycle(self, buffer: Any, /) -> None: ...
    def name(self, shard: int, frame: int, /) -> str: ...


@dataclass
class _Pending:
    """A unit on its way. work: its build, or the preparation of a direct one."""

    unit: Unit
    frames: dict[FrameId, Future[Any]]
    work: Future[Any]
    ahead: int  # bytes of what it is the first to read, and of what it builds

    def waits(self) -> Iterable[Future[Any]]:
        """What has to be done before its batches can be delivered, and is not."""
        if self.unit.direct:
            yield from (future for future in self.frames.values() if not future.done())
        if not self.work.done():
            yield self.work


def stream(
    source: Source,
    units: Iterable[Unit],
    finish: Callable[[Any], T],
    budget: Budget | None = None,
    stats: Stats | None = None,
) -> Generator[T, None, None]:
    """Build each unit's batches and yield `finish(items)` of each, in order; `Unit.direct` says who builds.

    Errors of any stage are raised here, in the place of the unit that they belong to.
    """
    budget, stats = budget or Budget(), stats or Stats()
    waits = Waits()
    planner = ThreadPoolExecutor(1, "shardstream-plan", work_for, (waits,))
    fetchers = ThreadPoolExecutor(budget.threads, "shardstream-fetch", work_for, (waits,))
    builders = ThreadPoolExecutor(budget.threads, "shardstream-build")
    frames: Frames[Any] = Frames(_timed(source.fetch, stats), source.recycle, fetchers, budget.keep)
    pending: deque[_Pending] = deque()
    waiting = iter(units)
    plan: Future[Unit | None] = planner.submit(next, waiting, None)
    ahead = 0
    try:
        while True:
            while len(pending) < _DEPTH and (not pending or ahead < budget.prefetch):
                if pending and not _planned(plan, pending[0], budget.deadline, stats):
                    break
                unit = _wait(plan, budget.deadline, stats)
                if unit is None:
                    break
                plan = planner.submit(next, waiting, None)
                before = frames.fetched_bytes
                with working_for(waits):
                    source.expect(frames.missing(unit.needs))
                futures = {need.frame: frames.use(need) for need in unit.needs}
                if unit.direct:
                    work: Future[Any] = fetchers.submit(unit.prepare) if unit.unverified else _DONE
                else:
                    work = builders.submit(_build, unit, finish, futures, source, budget.deadline, stats)
                pending.append(_Pending(unit, futures, work, unit.volume + frames.fetched_bytes - before))
                ahead += pending[-1].ahead
            if not pending:
                stats.tiers = source.counters()
                return
            stats.queue_depth = sum(item.work.done() for item in pending)
            head = pending.popleft()
            unit, built = head.unit, _wait(head.work, budget.deadline, stats)
            if unit.direct:
                buffers = {
                    frame: _wait(future, budget.deadline, stats) for frame, future in head.frames.items()
                }
                built = map(finish, unit.build(buffers))
            ahead -= head.ahead
            stats.frames, stats.bytes_read = _moved(frames, stats)
            stats.tiers = source.counters()
            for batch, samples in zip(built, unit.sizes, strict=True):
                stats.batches += 1
                stats.samples += samples
                yield batch
            for frame in head.frames:
                frames.release(frame)
    finally:
        for pool in (planner, fetchers, builders):
            pool.shutdown(wait=False, cancel_futures=True)
        waits.end()


def _planned(plan: Future[Any], head: _Pending, deadline: float, stats: Stats) -> bool:
    """Whether there is a plan to go on with; waits for one as long as the head is not ready."""
    started = time.monotonic()
    for future in () if plan.done() else head.waits():
        wait((plan, future), deadline, FIRST_COMPLETED)
        if plan.done():
            break
    stats.wait_seconds += time.monotonic() - started
    # An error of planning is raised in its place, after what was planned before it.
    return plan.done() and plan.exception() is None


def _wait(future: Future[T], deadline: float, stats: Stats) -> T:
    if future.done():
        return future.result()
    started = time.monotonic()
    try:
        return future.result(deadline)
    except FutureTimeout as error:
        if future.done():
            raise  # a TimeoutError of the stage itself, not of this wait
        raise StorageError(
            f"a batch was not ready after {deadline:.0f} s; is the storage answering?"
        ) from error
    finally:
        stats.wait_seconds += time.monotonic() - started


def _build(
    unit: Unit,
    finish: Callable[[Any], T],
    futures: Mapping[FrameId, Future[Any]],
    source: Source,
    deadline: float,
    stats: Stats,
) -> list[T]:
    buffers: dict[FrameId, Any] = {}
    for frame, future in futures.items():
        try:
            buffers[frame] = future.result(deadline)
        except FutureTimeout as error:
            if future.done():
                raise
            raise StorageError(f"{source.name(*frame)}: not read after {deadline:.0f} s") from error
    started = time.monotonic()
    built = [finish(items) for items in unit.build(buffers)]
    # Threads may lose a count to each other here: these are statistics, and a lock would cost more.
    stats.build_seconds += time.monotonic() - started
    return built


def _timed(fetch: Callable[[int, int], T], stats: Stats) -> Callable[[int, int], T]:
    def timed(shard: int, frame: int) -> T:
        started = time.monotonic()
        try:
            return fetch(shard, frame)
        finally:
            stats.fetch_seconds += time.monotonic() - started

    return timed


def _moved(frames: Frames[Any], stats: Stats) -> tuple[int, int]:
    """The totals after adding what was fetched since the last call."""
    totals = stats.frames + frames.fetched, stats.bytes_read + frames.fetched_bytes
    frames.fetched = frames.fetched_bytes = 0
    return totals
