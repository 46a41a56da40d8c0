"""Frames whose memory stays valid as long as there is a view of it: for consumers that copy nothing."""

from __future__ import annotations

import numpy as np

from shardstream.read.buffers import Buffer
from shardstream.read.samples.source import SampleSource

__all__ = ["ZeroCopySource"]


class ZeroCopySource(SampleSource):
    """A `SampleSource` that uses a buffer again only when no view of it is left."""

    def fetch(self, shard: int, frame: int) -> Buffer | memoryview:
        """The raw bytes of a frame. Views of it stay valid."""
        buffer = super().fetch(shard, frame)
        return self._pool.leased(buffer) if isinstance(buffer, np.ndarray) else buffer

    def recycle(self, buffer: Buffer | memoryview) -> None:
        """Do nothing: the buffer is given back when its last view is gone."""
