"""Which blocks are fetched ahead: in which ranges, how large, and in which order."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout

from shardstream.errors import ShardstreamError
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.cancellation import current
from shardstream.storage.fetch.arrivals import Arrivals
from shardstream.storage.fetch.coalesce import ranges
from shardstream.storage.fetch.in_flight import BlockRequest, InFlight
from shardstream.storage.fetch.pool import ElasticPool
from shardstream.storage.fetch.progress import EpochProgress
from shardstream.storage.fetch.range_sizes import RangeSizes
from shardstream.storage.transport.backends import Data

__all__ = ["Planner"]

# Ranges at once: a few large ones fill the link, and each comes sooner.
_MOST, _FEW, _MOST_BYTES = 64, 16, 256 << 20
_HEAD_START = 1.0  # seconds at most in which the first frames of an epoch have all connections


class Planner:
    """Sends for blocks before they are needed; may be used by many threads.

    Args:
        tiers: A block that they have is not sent for.
        arrivals: Blocks that are on their way or here.
        progress: How much was asked for in this epoch.
        fetch: `RangeFetcher.fetch`.
    """

    def __init__(
        self,
        tiers: Tiers,
        arrivals: Arrivals,
        progress: EpochProgress,
        fetch: Callable[[Sequence[InFlight], float], None],
    ) -> None:
        self._tiers, self._arrivals, self._fetch = tiers, arrivals, fetch
        self._sizes = RangeSizes(tiers, progress)
        self._ranges = ElasticPool(_MOST, _MOST_BYTES, _FEW)
        # One thread, so that the blocks that are expected first are sent for first, on connections that are
        # free.
        self._plans = ElasticPool(1)
        self._begins = False  # the next frames are the first of an epoch
        self._first: list[Future[Data | None]] = []  # these frames, as long as no others are sent for

    def limit_ranges(self, most: Callable[[], int]) -> None:
        """Ask this function, again and again, how many ranges may be fetched at once."""
        self._ranges.most = most

    def submit(self, requests: Iterable[BlockRequest], first: bool, patience: float) -> None:
        """Send for blocks; see `Fetcher.ahead`."""
        self._arrivals.announce_plan()
        self._plans.submit(lambda: self._plan(requests, first, patience))

    def settle(self, seconds: float) -> None:
        """Wait until the first frames of an epoch are sent for, or all plans that were submitted before.

        Args:
            seconds: The most to wait. The end of the iterator that this thread works for ends the wait, too.
        """
        if not self._begins:
            return
        sent = Future[None]()

        def tell() -> None:
            if sent.set_running_or_notify_cancel():
                sent.set_result(None)

        self._plans.submit(tell)
        with contextlib.suppress(CancelledError, FutureTimeout):
            current().result(sent, seconds)

    def restart(self, total: float) -> None:
        """An epoch begins, of a dataset of `total` bytes."""
        self._begins = True
        self._sizes.restart(total)

    @property
    def room(self) -> int:
        """The bytes of a range in which blocks may be fetched that are needed later; 0 for none."""
        if self._begins:
            return 0
        disk, ahead, size = self._tiers.disk, self._arrivals.ahead, self._sizes.now
        free = self._tiers.room
        if disk is not None:
            # They are in memory until they are written.
            free = max(free, self._tiers.room_to_write - ahead.in_flight_bytes)
            free = min(free, disk.room(ahead.on_disk_bytes) - ahead.in_flight_bytes)
        return size if free >= size else 0

    def _plan(self, requests: Iterable[BlockRequest], first: bool, patience: float) -> None:
        """Cut the blocks that are not here yet into ranges, in the order of need, and send for them."""
        fresh: list[InFlight] = []
        with self._arrivals.making_plan():
            if not first:
                # The first batch is not to share the connections with blocks that are needed later.
                wait(self._first, _HEAD_START)
                self._first = []
            try:
                # An index may be damaged: the threads that ask for its frames are told.
                with contextlib.suppress(ShardstreamError):
                    for request in requests:
                        in_flight = self._arrivals.send(request)
                        if in_flight is None:
                            continue
                        fresh.append(in_flight)
                        # The tiers are asked only now. Otherwise a block would be fetched again that arrived
                        # in between.
                        if self._tiers.has(request.block):
                            self._arrivals.end_ahead(fresh.pop(), None)
            finally:  # even after an error, the blocks that are known so far are sent for
                for run in self._runs(fresh):
                    size = sum(in_flight.request.size for in_flight in run)
                    self._ranges.submit(functools.partial(self._fetch, run, patience), size)
                if self._begins and not first:
                    self._begins, self._first = False, [in_flight.future for in_flight in fresh]

    def _runs(self, fresh: Sequence[InFlight]) -> list[list[InFlight]]:
        by_block = {in_flight.request.block: in_flight for in_flight in fresh}
        runs = ranges([in_flight.request for in_flight in fresh], self._sizes.now)
        return [[by_block[request.block] for request in run] for run in runs]
