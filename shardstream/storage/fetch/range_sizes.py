"""How large the ranges are that are fetched ahead."""

from __future__ import annotations

import math
import time

from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.fetch.coalesce import LONGEST
from shardstream.storage.fetch.progress import EpochProgress

__all__ = ["RangeSizes"]

_FIRST = 2 << 20  # bytes of the first ranges of an epoch: small, so that all blocks come soon
_GROWTH = 16  # a range is at most one part in so many of the bytes that were asked for in this epoch
_SHARE = 64  # and one part in so many of the budget, or a few ranges on their way would fill it
# Seconds in which the link brings the whole dataset: then ranges grow sooner. The rate is the mean since the
# epoch began, with the wait for the indexes: at first about half of what the link can do.
_SHORT = 60.0
_EARLY = 2  # a range is then at most one part in so many of the bytes that came in this epoch
_WAIT, _STREAMS = 2.0, 16  # seconds in which a range comes, if so many come at once


class RangeSizes:
    """Grows the ranges of an epoch: a block that is needed soon waits for its whole range.

    Args:
        tiers: They count the bytes that came from the store, and have the budget.
        progress: How much was asked for in this epoch.
    """

    def __init__(self, tiers: Tiers, progress: EpochProgress) -> None:
        self._counters, self._progress = tiers.counters, progress
        self._limit, self._share = tiers.budget.limit, tiers.budget.limit // _SHARE
        self._on_disk = tiers.disk is not None
        self._began, self._before, self._total = time.monotonic(), 0, math.inf

    def restart(self, total: float) -> None:
        """An epoch begins, of a dataset of `total` bytes."""
        self._began, self._before, self._total = time.monotonic(), self._counters.remote_bytes, total

    @property
    def now(self) -> int:
        """The bytes of a range at most."""
        came = self._counters.remote_bytes - self._before
        took = time.monotonic() - self._began
        # If all comes in a short time anyway, nobody waits longer, and there are fewer requests. But in a
        # memory that is too small for all, what comes early drives out what is needed in this epoch, too.
        holds = self._on_disk or self._total <= self._limit
        short = holds and self._total * took < _SHORT * came
        early = came // _EARLY if short else 0
        grown = min(max(self._progress.bytes // _GROWTH, early), self._share, LONGEST)
        # On a slow link, no range takes long: neither beside others, nor in a stream like those that were.
        # A link that is not used much has a low mean, and fast streams.
        rate = max(came / took / _STREAMS if took else 0.0, self._counters.stream_rate)
        return max(_FIRST, int(min(grown, _WAIT * rate)))
