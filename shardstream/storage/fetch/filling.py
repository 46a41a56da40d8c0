"""Filling the SSD tier: blocks are fetched in the order of need, and looked for at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from shardstream.errors import ShardstreamError
from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.fetch.coalesce import ranges
from shardstream.storage.fetch.fetcher import Fetcher
from shardstream.storage.fetch.in_flight import BlockRequest, error_for_others
from shardstream.storage.transport.backends import Data

__all__ = ["Filling"]

_FIRST, _WINDOW = 16 << 20, 256 << 20  # bytes of blocks among which neighbours come in one range, growing
_THREADS = 16
_WAIT = 300.0  # seconds to wait for the disk


class _Target(NamedTuple):
    fetcher: Fetcher
    disk: DiskTier
    request: BlockRequest


class Filling:
    """Takes blocks one by one, in the order of need; for one thread.

    Args:
        moved: It is called with the bytes of blocks that were fetched.

    Attributes:
        fetched: How many blocks were fetched and are on the disk.
        fetched_bytes: Their bytes, as stored.
        missing: How many blocks are not on the disk at the end.
        failed: The errors.
    """

    def __init__(self, moved: Callable[[int], None]) -> None:
        self._moved = moved
        self._pool = ThreadPoolExecutor(_THREADS, "shardstream-warm")
        self._window: list[_Target] = []
        self._size, self._most = 0, _FIRST
        self._pending: dict[Future[list[str]], int] = {}
        self._sent: list[_Target] = []  # not seen on the disk yet
        self.fetched = self.fetched_bytes = self.missing = 0
        self.failed: list[str] = []

    def add(self, fetcher: Fetcher, disk: DiskTier, request: BlockRequest) -> None:
        """Fetch a block, together with neighbours that are added before or after it."""
        self._window.append(_Target(fetcher, disk, request))
        self._size += request.size
        if self._size >= self._most:
            self._send()
            self._most = min(2 * self._most, _WINDOW)

    def offer(self) -> None:
        """Send for the blocks that were added, if no others are on their way: the next one may come late."""
        if self._window and all(future.done() for future in self._pending):
            self._send()

    def expect(self, fetcher: Fetcher, disk: DiskTier, request: BlockRequest) -> None:
        """A block that somebody else fetches: it is only looked for at the end."""
        self._sent.append(_Target(fetcher, disk, request))

    def finish(self) -> None:
        """Wait until all blocks are on the disk, or have failed."""
        self._send()
        self._collect(0)
        for disk in {id(target.disk): target.disk for target in self._sent}.values():
            disk.flush(_WAIT)
        for fetcher, disk, request in self._sent:
            # A block that another process fetches may still be on its way to the disk.
            if not disk.has(request.block) and not self.failed:
                try:
                    fetcher.get(request)
                    disk.flush(_WAIT)
                except ShardstreamError as error:
                    self.failed.append(str(error))
            if disk.has(request.block):
                self._count(request)
            else:
                self.missing += 1
        self._sent = []

    def end(self) -> None:
        """End the threads; requests that did not begin are not sent."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _count(self, request: BlockRequest) -> None:
        self.fetched += 1
        self.fetched_bytes += request.size

    def _send(self) -> None:
        window, self._window, self._size = self._window, [], 0
        left = []
        for target in self._sent:  # of the windows before
            if target.disk.has(target.request.block):
                self._count(target.request)
            else:
                left.append(target)
        self._sent = left + window
        for fetcher in {id(target.fetcher): target.fetcher for target in window}.values():
            for run in ranges([target.request for target in window if target.fetcher is fetcher]):
                future = self._pool.submit(_fetch, fetcher, run)
                self._pending[future] = sum(request.size for request in run)
                self._collect(2 * _THREADS)

    def _collect(self, most: int) -> None:
        while len(self._pending) > most:
            for future in wait(self._pending, timeout=_WAIT, return_when=FIRST_COMPLETED).done:
                size = self._pending.pop(future)
                self.failed += future.result()
                self._moved(size)


def _fetch(fetcher: Fetcher, run: Sequence[BlockRequest]) -> list[str]:
    """Fetch blocks into the SSD tier; returns the errors."""
    failed: list[str] = []

    def result(request: BlockRequest, found: Data | BaseException | None, on_disk: bool) -> None:
        error = error_for_others(found, request) if isinstance(found, BaseException) else None
        if error is not None:
            failed.append(str(error))

    try:
        fetcher.store.fetch(run, result, _WAIT)
    except Exception as error:  # noqa: BLE001  # it is reported with the others
        result(run[0], error, False)
    return failed
