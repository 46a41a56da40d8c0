"""Builds the batches of units, in a thread or for the consumer, up to the first error."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shardstream.counters.layout import stage
from shardstream.counters.recorder import Link, listening
from shardstream.errors import StorageError
from shardstream.read.engine.frames import FrameId
from shardstream.read.engine.sizes import Sizes
from shardstream.read.engine.stats import Stats
from shardstream.read.engine.tasks import News, Task
from shardstream.read.engine.units import Budget, Source, Unit
from shardstream.storage.cancellation import Cancelled, CancelScope

__all__ = ["Builder", "Built", "delivered"]

T = TypeVar("T")

_POLL = 0.5  # seconds
_BATCH = stage("batch")


@dataclass
class Built(Generic[T]):
    """The batches of one unit, up to an error.

    Attributes:
        batches: Each batch, with the number of its samples.
        error: What went wrong behind these batches, or None.
        bytes: The memory of the batches, in bytes; 0 for units that do not grow.
    """

    batches: deque[tuple[T, int]]
    error: Exception | None
    bytes: int


class Builder(Generic[T]):
    """Builds the batches of one stream; for many threads.

    Args:
        source: Names the frames in messages.
        finish: From the items of a batch to the batch.
        budget: The limits of the stream.
        stats: Where the time is counted.
        singles: Whether a batch that cannot be built is built item by item, up to the item that fails.
        scope: Ends the work when the stream ends.
        news: Knows when a task of the stream ended last.
        least: Bytes of a batch. If all batches are smaller, not every batch is measured.
    """

    def __init__(
        self,
        source: Source,
        finish: Callable[[Any], T],
        budget: Budget,
        stats: Stats,
        singles: bool,
        scope: CancelScope,
        news: News,
        least: int,
    ) -> None:
        self._source, self._finish, self._deadline = source, finish, budget.deadline
        self._stats, self._singles, self._scope, self._news = stats, singles, scope, news
        self._least, self._sizes = least, Sizes()

    @property
    def expected(self) -> int | None:
        """How many bytes the next batch of a unit that grows may have. None if there was no batch yet."""
        return self._sizes.expected

    def build(self, unit: Unit, frames: Mapping[FrameId, Task[Any]]) -> Built[T]:
        """Build all batches of a unit, in a thread.

        Args:
            unit: What to build.
            frames: The tasks that fetch its frames. The thread waits for them.
        """
        built: Built[T] = Built(deque(), None, 0)
        started, waited = time.monotonic(), 0.0

        def buffer(frame: FrameId) -> Any:
            nonlocal waited
            since = time.monotonic()
            while not frames[frame].wait(min(_POLL, self._deadline)):
                if self._scope.over:
                    raise Cancelled
                if self._news.quiet(since) > self._deadline:
                    name = self._source.name(*frame)
                    raise StorageError(f"{name}: not read after {self._deadline:.0f} s")
            waited += time.monotonic() - since
            return frames[frame].result()

        try:
            for batch, samples in self.batches(unit, buffer, None):
                if unit.grows:
                    built.bytes += self._sizes.of(batch, self._least)
                built.batches.append((batch, samples))
        except Exception as error:  # noqa: BLE001 - raised in its place, behind these batches
            built.error = error
        seconds = time.monotonic() - started - waited
        self._stats.build_seconds += seconds
        self._stats.add(frame_wait_seconds=waited)
        if built.batches:
            begun = started + waited
            link = self.link(unit) if listening() else None
            self._stats.recorder.span(_BATCH, begun, begun + seconds, len(built.batches), link)
        return built

    def link(self, unit: Unit) -> Link:
        """What the batches of a unit are made of, and what names them, for a trace."""
        number = id(self._source)
        return [(number, *need.frame) for need in unit.needs], [id(unit)]

    def batches(
        self, unit: Unit, buffer: Callable[[FrameId], Any], prepare: Callable[[], object] | None
    ) -> Iterator[tuple[T, int]]:
        """The batches of a unit, each with the number of its samples.

        Args:
            unit: What to build.
            buffer: From a frame to its buffer.
            prepare: Called before the first batch, or None.

        Raises:
            Exception: What the first batch raises that cannot be built, behind all batches before it.
        """
        given, finishing = 0, False
        scope, finish = self._scope, self._finish
        try:
            if prepare is not None:
                prepare()
            frames = {need.frame: buffer(need.frame) for need in unit.needs}
            for items, samples in zip(unit.build(frames), unit.sizes, strict=True):
                if scope.over:
                    raise Cancelled
                finishing = True
                batch = finish(items)
                finishing = False
                given += 1
                yield batch, samples
                del batch
            return
        except Exception:
            # Behind the last batch it is the last look at the files that has failed.
            parts = [] if finishing or given == len(unit.sizes) else unit.parts(self._singles)
            if not parts:
                raise
        # A frame of the unit is damaged. Batches that do not need this frame can still be built.
        for part in parts[given:]:
            yield from self.batches(part, buffer, part.prepare if part.direct else None)


def delivered(built: Built[T]) -> Iterator[tuple[T, int]]:
    """The batches that a thread has built, then its error. No reference to a batch stays here."""
    while built.batches:
        yield built.batches.popleft()
    error, built.error = built.error, None  # its traceback refers to `built`
    if error is not None:
        raise error
