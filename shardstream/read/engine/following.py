"""What follows an epoch: the first frames of the next one, which are in memory before that begins.

A shuffle reads from lanes x window frames at the same time. Without this, each epoch would begin with
opening all of them, while the consumer waits. The threads of an iterator end with it, so only frames go on
to the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator
from typing import Any

from shardstream.read.engine.frames import FrameId, FramesInMemory, Held, Need
from shardstream.read.engine.tasks import Pool, Task
from shardstream.read.engine.units import Budget, Source, Unit
from shardstream.storage.cancellation import current

__all__ = ["Following", "KeptFrames"]

_UNITS = 16  # how many units of the next epoch are looked at, at most


class KeptFrames:
    """Frames that stay in memory from one stream of a loader to its next one; for many threads.

    A copy that goes to another process is empty.
    """

    def __init__(self) -> None:
        # To append and to pop are atomic: of two streams that begin at once, one gets the frames.
        self._kept: deque[tuple[Source, dict[FrameId, Held[Any]]]] = deque(maxlen=1)
        self.cleared = 0  # how many times; a stream that began before gives nothing any more

    def give(self, source: Source, frames: dict[FrameId, Held[Any]], cleared: int) -> None:
        """Keep the frames of a source, in place of those that were kept before.

        Args:
            source: Of the frames.
            frames: What to keep. Frames that `take` would not find unchanged are left out.
            cleared: The value of the attribute when the stream that gives them began.
        """
        frames = {frame: held for frame, held in frames.items() if source.keeps(frame[0])}
        if frames and cleared == self.cleared:
            self._kept.append((source, frames))
            if cleared != self.cleared:  # meanwhile, by another thread
                self._kept.clear()

    def take(self, source: Source) -> dict[FrameId, Held[Any]]:
        """The frames that were kept, if they are of this source and as they were; they are kept no more."""
        try:
            of, frames = self._kept.pop()
        except IndexError:
            return {}
        if of is not source:  # the dataset was opened anew, as after a fork, or is another one by now
            return {}
        unchanged = set(source.unchanged(list(frames)))
        return {frame: held for frame, held in frames.items() if frame in unchanged}

    def clear(self) -> None:
        """Keep nothing, also of the streams that have begun."""
        self.cleared += 1
        self._kept.clear()

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return not self._kept

    def __reduce__(self) -> tuple[type[KeptFrames], tuple[()]]:
        return KeptFrames, ()


class Following:
    """Brings the first frames of the next epoch into memory while this one comes to its end.

    Frames of this epoch that the next one needs stay. Others are fetched, behind all that this epoch fetches.

    Args:
        kept: Where they are until the next stream begins.
        units: Plans the work of the next epoch. Called in a thread, when that of this one is planned.
        batches: How many batches this epoch has, from where the stream begins.
    """

    def __init__(self, kept: KeptFrames, units: Callable[[], Iterator[Unit]], batches: int) -> None:
        self._kept, self._units, self.batches = kept, units, batches
        self._plan: Task[list[Need]] | None = None
        self._missing: deque[Need] | None = None

    def begin(self, source: Source, planner: Pool, budget: Budget) -> dict[FrameId, Held[Any]]:
        """A stream begins; returns the frames that were kept for it.

        Args:
            source: Where its frames come from.
            planner: Plans it, and has nothing to do when all of it is planned.
            budget: Its limits.
        """
        self._source, self._planner, self._budget = source, planner, budget
        self._cleared = self._kept.cleared
        found = self._kept.take(source)
        self._taken = list(found)  # not the frames: what the stream drops must go
        return found

    def go_on(self, frames: FramesInMemory[Any], planned: bool, planning: bool) -> None:
        """Hold and fetch what there is room for; the consumer calls it whenever it has begun what it can.

        Args:
            frames: Those of the stream.
            planned: Whether work is planned that has not begun.
            planning: Whether more may be planned.
        """
        if self._plan is None and not planning:
            self._plan = self._planner.submit(self._needs)
        if planned or self._plan is None or not self._plan.done:
            # This may be the end: what is read to its end may be needed again soon.
            frames.linger(not planned)
            return
        if self._missing is None:
            # An error is met again by the next epoch, in its place.
            needs = [] if self._plan.error is not None else self._plan.result()
            self._missing = deque(need for need in needs if not frames.hold(need, self._budget.keep, 0))
            frames.linger(False)
        # Not much more memory than this epoch had open: what it has read makes room for what follows.
        most = min(self._budget.keep, frames.peak + self._budget.prefetch // 2)
        while self._missing and frames.hold(self._missing[0], self._budget.keep, most):
            self._missing.popleft()

    def _needs(self) -> list[Need]:
        """The frames of the next epoch's first units, each once, of not much more bytes than may be kept."""
        found: dict[FrameId, Need] = {}
        scope, units, size, most = current(), self._units(), 0, self._budget.keep
        for _ in range(_UNITS):
            unit = next(units, None)
            if unit is None or scope.over or size >= most:
                break
            for need in unit.needs:
                if need.frame not in found and self._source.keeps(need.frame[0]):
                    found[need.frame] = need
                    size += need.size
        return list(found.values())

    def end(self, frames: FramesInMemory[Any]) -> None:
        """The stream has delivered all of its epoch; the next one gets the frames."""
        self._kept.give(self._source, frames.left(self._budget.keep), self._cleared)

    def put_back(self, frames: FramesInMemory[Any], busy: Container[FrameId]) -> None:
        """The stream was only a look; the next one gets what this one got and has not dropped.

        Args:
            frames: Those of the stream.
            busy: Frames that a thread may still read, so that nobody else may write to their memory.
        """
        if self._kept.empty:  # else another stream has come to its end meanwhile
            mine = (frame for frame in self._taken if frame not in busy)
            self._kept.give(self._source, frames.left(self._budget.keep, mine), self._cleared)
