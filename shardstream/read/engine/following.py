"""What follows an epoch: the first frames of the next one, which are in memory before that begins.

A shuffle reads from lanes x window frames at the same time. Without this, each epoch would begin with opening
all of them, while the consumer waits. The threads of an iterator end with it, so only frames go on to the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from shardstream.read.engine.frames import FrameId, FramesInMemory, Held, Need
from shardstream.read.engine.tasks import Pool, Task
from shardstream.read.engine.units import Source, Unit
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

    def give(self, source: Source, frames: dict[FrameId, Held[Any]]) -> None:
        """Keep the frames of a source, in place of those that were kept before."""
        if frames:
            self._kept.append((source, frames))

    def take(self, source: Source) -> dict[FrameId, Held[Any]]:
        """The frames that were kept, as far as they are of this source and as they were; they are kept no more."""
        try:
            of, frames = self._kept.pop()
        except IndexError:
            return {}
        if of is not source:  # the dataset was opened anew, as after a fork, or is another one by now
            return {}
        unchanged = set(source.unchanged(list(frames)))
        return {frame: held for frame, held in frames.items() if frame in unchanged}

    def clear(self) -> None:
        """Keep nothing any more."""
        self._kept.clear()

    def __reduce__(self) -> tuple[type[KeptFrames], tuple[()]]:
        return KeptFrames, ()


class Following:
    """Brings the first frames of the next epoch into memory, when all work of this one has begun.

    Args:
        kept: Where they stay until the next stream begins.
        units: Plans the work of the next epoch. Called in a thread, and only when this epoch comes to its end.
    """

    def __init__(self, kept: KeptFrames, units: Callable[[], Iterator[Unit]]) -> None:
        self._kept, self._units = kept, units
        self._plan: Task[deque[Need]] | None = None

    def begin(self, source: Source) -> dict[FrameId, Held[Any]]:
        """The frames that were kept for this stream."""
        return self._kept.take(source)

    def fetch(self, frames: FramesInMemory[Any], planner: Pool, most: int) -> None:
        """Fetch what there is room for; called by the consumer again and again, when no work is left to begin.

        Args:
            frames: The frames of this stream.
            planner: Plans. It has nothing else to do any more.
            most: How many bytes all frames in memory may have.
        """
        if self._plan is None:
            self._plan = planner.submit(lambda: self._needs(most))
        if self._plan.done and self._plan.error is None:  # an error is met again by the next epoch, in its place
            needs = self._plan.result()
            while needs and frames.hold(needs[0], most):
                needs.popleft()

    def _needs(self, most: int) -> deque[Need]:
        """The frames of the first units, of at most so many bytes."""
        found: dict[FrameId, Need] = {}
        scope, units, size = current(), self._units(), 0
        for _ in range(_UNITS):
            unit = next(units, None)
            if unit is None or scope.over:
                break
            for need in unit.needs:
                if need.frame not in found:
                    found[need.frame] = need
                    size += need.size
            if size >= most:
                break
        return deque(found.values())

    def end(self, source: Source, frames: FramesInMemory[Any]) -> None:
        """The stream has delivered all of its epoch."""
        self._kept.give(source, frames.held())
