"""How the time of a stream is counted: steps, what is built for them, waits, and frames that are fetched."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shardstream.counters.layout import stage
from shardstream.counters.recorder import Link, listening
from shardstream.read.engine.stats import Stats
from shardstream.read.engine.units import Source

__all__ = ["QUICK", "UNTIMED", "Times", "timed_fetch", "together"]

# Seconds: shorter steps are counted together, for a call for each batch would be felt; the second while the
# work is traced.
_TELL, _TRACED = 0.05, 0.001
# If a batch and the step with it take less than so many seconds, of some batches after it only the end of the
# step is timed.
QUICK, UNTIMED = 0.001, 8
_FETCH, _BATCH, _STEP, _WAIT = stage("fetch"), stage("batch"), stage("step"), stage("wait")


def together() -> float:
    """For how many seconds steps are counted together."""
    return _TRACED if listening() else _TELL


class Times:
    """Counts the time of batches and of the steps with them.

    Attributes:
        waited: Whether the consumer has waited for the next batch.
    """

    def __init__(self, stats: Stats) -> None:
        self._stats, self.waited = stats, False

    def spend(
        self, count: int, begun: float, built: float, last: float, now: float, direct: bool, link: Link | None
    ) -> None:
        """Count the time of some batches. If the step with the last one is long, it is counted by itself.

        Args:
            count: How many they are.
            begun: When the first of them was asked for.
            built: The seconds until the last of them that was timed was built.
            last: When the last of them was asked for.
            now: When the batch after them was asked for.
            direct: Whether the consumer built them.
            link: What they take and give, if somebody is `listening`.
        """
        self._stats.tell_process()
        if count > 1 and now - last > _TELL:
            self._count(count - 1, begun, built, last, direct, link)
            count, begun = 1, last
        self._count(count, begun, built, now, direct, link)

    def _count(
        self, count: int, begun: float, built: float, ended: float, direct: bool, link: Link | None
    ) -> None:
        stats = self._stats
        # What is left is the consumer's.
        built = min(count * built, ended - begun)
        if direct:
            stats.recorder.span(_BATCH, begun, begun + built, count, link)
        if stats.delivers:
            if count > self.waited:
                stats.recorder.nothing(_WAIT, count - self.waited)
            self.waited = False
            taken = None if link is None else (link[1], ())
            stats.recorder.span(_STEP, begun + built, ended, count, taken)


def timed_fetch(source: Source, stats: Stats) -> Callable[[int, int], Any]:
    """`source.fetch`, with its time counted."""
    fetch, number = source.fetch, id(source)

    def timed(shard: int, frame: int) -> Any:
        started = time.monotonic()
        try:
            return fetch(shard, frame)
        finally:
            ended = time.monotonic()
            stats.fetch_seconds += ended - started
            link = ((), [(number, shard, frame)]) if listening() else None
            stats.recorder.span(_FETCH, started, ended, 1, link)

    return timed
