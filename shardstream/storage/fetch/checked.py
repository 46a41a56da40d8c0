"""Blocks from the store: counted, checked, and asked for once more if they come damaged."""

from __future__ import annotations

import time
from collections.abc import Callable

from shardstream.errors import CorruptionError
from shardstream.storage.cache.counters import ReadCounters
from shardstream.storage.fetch.in_flight import BlockRequest
from shardstream.storage.transport.backends import Data

__all__ = ["CheckedStore", "Load"]

Load = Callable[[str, int, int], Data]  # (url, start, size) -> exactly these bytes, or StorageError


class CheckedStore:
    """Reads ranges and blocks; may be used by many threads."""

    def __init__(self, load: Load, counters: ReadCounters) -> None:
        self._load, self._counters = load, counters

    def read(self, url: str, start: int, size: int) -> Data:
        """A range, unchecked."""
        began = time.monotonic()
        data = self._load(url, start, size)
        self._counters.from_store(size, time.monotonic() - began)
        return data

    def get(self, request: BlockRequest) -> Data:
        """A block."""
        return self.check(request, self.read(request.url, request.start, request.size))

    def check(self, request: BlockRequest, stored: Data) -> Data:
        """The block that these bytes are of. If they were damaged on their way, they are read once more.

        Raises:
            CorruptionError: They are damaged in the store.
        """
        try:
            return request.accept(stored)
        except CorruptionError:
            self._counters.damaged()
            return request.accept(self.read(request.url, request.start, request.size))
