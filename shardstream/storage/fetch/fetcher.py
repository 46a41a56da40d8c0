"""The blocks of one reader: given when they are asked for, and fetched before that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout

from shardstream.errors import StorageError
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.cancellation import current
from shardstream.storage.fetch.arrivals import Arrivals
from shardstream.storage.fetch.cached import CachedStore
from shardstream.storage.fetch.checked import CheckedStore, Load
from shardstream.storage.fetch.in_flight import BlockRequest, InFlight, error_for_others
from shardstream.storage.fetch.planner import Planner
from shardstream.storage.fetch.progress import EpochProgress
from shardstream.storage.fetch.range_fetcher import RangeFetcher
from shardstream.storage.secrets import redact
from shardstream.storage.transport.backends import Data

__all__ = ["Fetcher"]

_DEADLINE = 600.0  # seconds to wait for a fetch of another thread


class Fetcher:
    """Gives blocks, each fetched once for all threads; may be used by many of them.

    A block comes from the first of these that has it: the blocks that were fetched ahead (`Arrivals`), the
    tiers (`CachedStore`), the store (`CheckedStore`).

    Args:
        load: (url, start, size) -> exactly these bytes, or StorageError.
        tiers: Where blocks stay.

    Attributes:
        tiers: As given.
        store: The tiers and the store, without the blocks that were fetched ahead.
    """

    def __init__(self, load: Load, tiers: Tiers) -> None:
        self.tiers = tiers
        self.store = CachedStore(tiers, CheckedStore(load, tiers.counters))
        self._arrivals, self._progress = Arrivals(tiers), EpochProgress()
        # No method of this object: in a circle, its bytes would stay in memory until a collection.
        fetch = RangeFetcher(self.store, self._arrivals, self._progress).fetch
        self._planner = Planner(tiers, self._arrivals, self._progress, fetch)

    def limit_ranges(self, most: Callable[[], int]) -> None:
        """Ask this function, again and again, how many ranges may be fetched ahead at once."""
        self._planner.limit_ranges(most)

    def get(self, request: BlockRequest) -> Data:
        """The bytes of a block, checked.

        Raises:
            StorageError: The store does not give it.
            CorruptionError: It is damaged in the store.
        """
        data = self._get(request)
        self._progress.add(request.block, len(data))
        return data

    def _get(self, request: BlockRequest) -> Data:
        while True:
            found, fetch = self._arrivals.ask(request)
            if not isinstance(found, InFlight):
                self._arrivals.given(request.block)
                return found
            if fetch:
                return self._fetch(found)
            try:
                data = current().result(found.followed(), _DEADLINE)
            except CancelledError as error:
                reason = "given up: the iterator that it was for has ended"
                raise StorageError(f"{redact(request.url)}: {reason}") from error
            except FutureTimeout as error:
                if found.future.done():
                    raise
                raise StorageError(f"{redact(request.url)}: not read after {_DEADLINE:.0f} s") from error
            if data is not None:
                self._arrivals.given(request.block)
                return data

    def _fetch(self, in_flight: InFlight) -> Data:
        """Fetch one block in this thread."""
        try:
            data = self.store.get(in_flight.request)
        except BaseException as error:
            self._arrivals.end(in_flight, error_for_others(error, in_flight.request))
            raise
        self._arrivals.end(in_flight, data)
        return data

    def has(self, block: Block) -> bool:
        """Whether a block seems to be here: fetched ahead, or in a tier."""
        return block in self._arrivals.ahead or self.tiers.has(block)

    def ahead(self, requests: Iterable[BlockRequest], first: bool = False, wait: float = 0.0) -> None:
        """Fetch blocks that will be asked for in this order; returns at once, and `get` raises the errors.

        Args:
            requests: The blocks. Neighbours in one object come in one range.
            first: Whether they do not wait until the first frames of an epoch have come.
            wait: Seconds to wait until the SSD tier can take a block.
        """
        self._planner.submit(requests, first, wait)

    def settle(self, seconds: float) -> None:
        """If an epoch begins, wait until what was given to `ahead` is sent for, for at most so many seconds.

        Once the first frames of an epoch are sent for, this returns at once until the next `restart`.
        """
        self._planner.settle(seconds)

    @property
    def room(self) -> int:
        """The bytes of a range in which blocks may be fetched that are needed later; 0 for none."""
        return self._planner.room

    def taken(self, group: str) -> list[int]:
        """The frames of a group that were given since `restart`, or are in memory to be given."""
        return self._progress.frames(group)

    def restart(self, total: float = math.inf) -> None:
        """An epoch begins: all blocks may be asked for again, and the blocks that are here perhaps never.

        Args:
            total: The bytes of all blocks, if they are known.
        """
        self._arrivals.restart()
        self._planner.restart(total)
        self._progress.restart()
