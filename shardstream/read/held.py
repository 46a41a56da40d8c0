"""Frames that live as long as somebody looks at them: for consumers that copy nothing."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np

from shardstream.read.decompress import Buffer
from shardstream.read.reader import DatasetReader
from shardstream.read.samples import SampleSource

__all__ = ["HeldSource"]


class HeldSource(SampleSource):
    """A `SampleSource` whose buffers are used again only when no view of them is left."""

    class _Owner(np.ndarray):
        """An array that its views keep, so that their end can be seen."""

    def __init__(self, reader: DatasetReader, fields: tuple[str, ...] | None) -> None:
        super().__init__(reader, fields)
        self._freed: deque[Buffer] = deque()

    def fetch(self, shard: int, frame: int) -> Buffer | memoryview:
        """The raw bytes of a frame; views of it stay valid."""
        while self._freed:
            self._decompressor.give_back(self._freed.popleft())
        buffer = super().fetch(shard, frame)
        if not isinstance(buffer, np.ndarray):
            return buffer
        owner = buffer.view(self._Owner)
        # Appending to a deque is atomic: the last view may go in any thread, and inside anything.
        weakref.finalize(owner, self._freed.append, buffer).atexit = False
        return owner

    def recycle(self, buffer: Buffer | memoryview) -> None:
        """Nothing: the last view gives it back."""
