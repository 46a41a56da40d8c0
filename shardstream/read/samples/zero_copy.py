"""Frames whose memory stays valid as long as there is a view of it: for consumers that copy nothing."""

from __future__ import annotations

import numpy as np

from shardstream.read.buffers import Buffer
from shardstream.read.samples.source import SampleSource
from shardstream.storage.cache.range_parts import owned

__all__ = ["ZeroCopySource"]


class ZeroCopySource(SampleSource):
    """A `SampleSource` that uses a buffer again only when no view of it is left."""

    def fetch(self, shard: int, frame: int) -> Buffer | memoryview:
        """The raw bytes of a frame. Views of it stay valid."""
        buffer = super().fetch(shard, frame)
        # The range in which a frame came is not to stay in memory as long as a sample that a consumer keeps.
        return self._pool.leased(buffer) if isinstance(buffer, np.ndarray) else memoryview(owned(buffer))

    def recycle(self, buffer: Buffer | memoryview) -> None:
        """Do nothing: the buffer is given back when its last view is gone."""
