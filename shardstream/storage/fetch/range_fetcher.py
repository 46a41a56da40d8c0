"""Fetching one range ahead: its blocks are ready, or the threads that wait for them are told why not."""

from __future__ import annotations

from collections.abc import Sequence

from shardstream.storage.fetch.arrivals import Arrivals
from shardstream.storage.fetch.cached import CachedStore
from shardstream.storage.fetch.in_flight import BlockRequest, InFlight, error_for_others
from shardstream.storage.fetch.progress import EpochProgress
from shardstream.storage.transport.backends import Data

__all__ = ["RangeFetcher"]


class RangeFetcher:
    """Fetches blocks that are on their way in `arrivals`; may be used by many threads."""

    def __init__(self, store: CachedStore, arrivals: Arrivals, progress: EpochProgress) -> None:
        self._store, self._arrivals, self._progress = store, arrivals, progress

    def fetch(self, run: Sequence[InFlight], wait: float) -> None:
        """Fetch blocks of one object. Nothing is raised.

        Args:
            run: The blocks.
            wait: Seconds to wait until the SSD tier can take a block.
        """
        missing = {in_flight.request.block: in_flight for in_flight in run}

        def end(request: BlockRequest, result: Data | BaseException | None, on_disk: bool) -> None:
            if isinstance(result, BaseException):
                result = error_for_others(result, request)
            elif result is not None and request.soon:
                self._progress.add(request.block)
            self._arrivals.end_ahead(missing.pop(request.block), result, on_disk)

        try:
            self._store.fetch([in_flight.request for in_flight in run], end, wait)
        except BaseException as error:  # noqa: BLE001  # the threads that wait for the blocks are told
            for in_flight in list(missing.values()):
                end(in_flight.request, error, False)
