"""Blocks through the tiers: a cache around a store, which fetches each block once among all processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.locks import FetchLock
from shardstream.storage.cache.range_parts import RangeParts
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.cancellation import current
from shardstream.storage.fetch.checked import CheckedStore
from shardstream.storage.fetch.coalesce import LONGEST, ranges
from shardstream.storage.fetch.in_flight import BlockRequest
from shardstream.storage.transport.backends import Data

__all__ = ["CachedStore", "Result", "wait_for_lock"]

# Called with a request, and its block, its error, or None if another process has the block or nobody needs it
# any more; and whether the SSD tier takes the block.
Result = Callable[[BlockRequest, Data | BaseException | None, bool], None]

_PATIENCE = 60.0  # seconds to wait for a fetch of another process, before fetching here, too
_SPARE_WAIT = 1.0  # seconds in which the SSD tier may take the blocks of a range that are needed later
_POLLS = (0.002, 0.05)  # seconds between two tries to take the lock of another process, growing


class CachedStore:
    """Gives blocks from the tiers or the store, and puts them into the tiers; may be used by many threads."""

    def __init__(self, tiers: Tiers, store: CheckedStore) -> None:
        self._tiers, self._store = tiers, store
        self._parts = RangeParts(tiers.budget)

    def get(self, request: BlockRequest) -> Data:
        """A block of the nearest tier, or of the store, checked."""
        data = self._tiers.find(request.block)
        return self._fetch(request) if data is None else data

    def _fetch(self, request: BlockRequest) -> Data:
        lock = self._wait_for_lock(request.block)
        try:
            # Another process may have fetched the block while this one waited.
            data = None if lock is None else self._tiers.find(request.block)
            if data is None:
                data = self._store.get(request)
                self._tiers.remember(request.block, data)
                self._tiers.write(request.block, data, lock)
                lock = None
            return data
        finally:
            _release(lock)

    def _wait_for_lock(self, block: Block) -> FetchLock | None:
        """The right to fetch a block, as soon as no other process has it; None without an SSD tier."""
        disk = self._tiers.disk
        return None if disk is None else wait_for_lock(lambda: disk.lock(block))

    def fetch(self, requests: Sequence[BlockRequest], result: Result, wait: float = 0.0) -> None:
        """Fetch blocks of one object into the SSD tier, except the blocks that other processes fetch.

        Args:
            requests: Each of another block.
            result: It is called once for each request, unless this method raises.
            wait: Seconds to wait until the SSD tier can take a block.
        """
        if current().over:
            for request in requests:
                result(request, None, False)
            return
        disk = self._tiers.disk
        locks: dict[BlockRequest, FetchLock | None] = {}
        try:
            for request in requests:
                lock = None if disk is None else disk.lock(request.block)
                if disk is not None and (lock is None or disk.has(request.block)):
                    _release(lock)
                    result(request, None, False)
                else:
                    locks[request] = lock
            for run in ranges(list(locks), LONGEST):
                self._fetch_range(run, locks, result, wait)
        finally:
            for lock in locks.values():
                _release(lock)

    def _fetch_range(
        self,
        run: Sequence[BlockRequest],
        locks: dict[BlockRequest, FetchLock | None],
        result: Result,
        wait: float,
    ) -> None:
        """Fetch neighbours; the locks of finished blocks are taken out of `locks`."""
        first, last = run[0], run[-1]
        try:
            stored = self._store.read(first.url, first.start, last.start + last.size - first.start)
            # On the way to the disk, most blocks are gone long before the few that are needed soon. These get
            # memory of their own, or the whole range would stay with them. Without a disk, the others stay in
            # memory, until one after the other gives way: that would free nothing if they were views.
            mixed, memory = not all(request.soon for request in run), self._tiers.disk is None
            places = [
                (request.start - first.start, request.size, mixed and (memory or request.soon))
                for request in run
            ]
            parts = dict(zip(run, self._parts.cut(stored, places), strict=True))
            del stored
        except BaseException as error:  # noqa: BLE001  # the threads that wait for the blocks are told
            for request in run:
                _release(locks.pop(request))
                result(request, error, False)
            return
        deadline = time.monotonic() + _SPARE_WAIT
        for request in sorted(run, key=lambda request: not request.soon):  # the others can wait for the disk
            try:
                data = self._store.check(request, parts.pop(request))
            except BaseException as error:  # noqa: BLE001
                _release(locks.pop(request))
                result(request, error, False)
            else:
                patience = wait if request.soon else max(wait, deadline - time.monotonic())
                on_disk = self._tiers.write(request.block, data, locks[request], patience)
                del locks[request]
                result(request, data, on_disk)


def wait_for_lock(take: Callable[[], FetchLock | None]) -> FetchLock | None:
    """What `take` gives as soon as no other process has the lock; None if that takes very long."""
    deadline, pause, poll = time.monotonic() + _PATIENCE, threading.Event(), _POLLS[0]
    while (lock := take()) is None and time.monotonic() < deadline and not current().over:
        pause.wait(poll)  # locks of other processes can only be polled
        poll = min(2 * poll, _POLLS[1])
    return lock


def _release(lock: FetchLock | None) -> None:
    if lock is not None:
        lock.release()
