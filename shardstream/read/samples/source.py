"""The frames of a dataset of samples as buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shardstream.read.buffers import Buffer, BufferPool
from shardstream.read.dataset_blocks import STREAMS
from shardstream.read.decompress import Decompressor
from shardstream.read.engine.frames import FrameId
from shardstream.read.mapped_frames import InPlaceReads
from shardstream.read.reader import DatasetReader

__all__ = ["SampleSource"]


class SampleSource:
    """The frames of a dataset as buffers, and the fields that are read.

    Args:
        reader: Of the dataset.
        fields: The names of the fields that are read, or None for all.

    Attributes:
        names: The fields that are read, in the order of the manifest.
        columns: int64 [K], the columns of these fields in an index.
        batches: The memory for batches.
        in_place_reads: The frames that were read in mapped files.
    """

    def __init__(self, reader: DatasetReader, fields: tuple[str, ...] | None) -> None:
        self.reader = reader
        names = [info.name for info in reader.manifest.fields]
        wanted = [(c, n) for c, n in enumerate(names) if fields is None or n in fields]
        self.columns = np.array([column for column, _ in wanted], np.int64)
        self.names = [name for _, name in wanted]
        self._pool, self.batches = BufferPool(), BufferPool()  # of frames, and of batches
        self._decompressor = Decompressor(self._pool)
        self.in_place_reads = InPlaceReads(reader)

    def fetch_ahead(self, frames: Sequence[FrameId]) -> None:
        """Begin to fetch frames, in this order; see `Source`."""
        if not self.reader.all_local:
            self.reader.ahead.fetch(frames)

    def counters(self) -> dict[str, Any]:
        """How many bytes came from each tier, by name; empty if all files are local."""
        return {} if self.reader.all_local else self.reader.counters

    def memory(self) -> dict[str, int]:
        """The bytes of the reader's budget in use, by name, and its "limit"."""
        return self.reader.memory

    def limit_idle(self, frames: int, batches: int) -> tuple[int, int]:
        """Limit the memory that waits to be used again; see `Source`."""
        return self._pool.limit_to(frames), self.batches.limit_to(batches)

    def name(self, shard: int, frame: int) -> str:
        """The name of a frame for messages."""
        return self.reader.frame_name(shard, frame)

    def fetch(self, shard: int, frame: int) -> Buffer | memoryview:
        """The raw bytes of a frame. The buffer may be longer than the frame."""
        codec = self.reader.manifest.shards[shard].codec
        if codec in STREAMS:
            # A copy: with a view, the whole archive would stay in memory as long as the frame.
            found = self.reader.frame(shard, frame)
            buffer = self._pool.take(len(found))
            buffer[: len(found)] = np.frombuffer(found, np.uint8)
            return buffer
        if codec != "zstd" or self.reader.decompressed(shard):
            return self.reader.frame(shard, frame)
        raw_size = int(self.reader.index(shard).frame_raw_size[frame])
        stored = self.reader.stored_frame(shard, frame)
        buffer = self._decompressor.frame(stored, raw_size, self.name(shard, frame))
        self.reader.local.check_again(shard, frame)
        return buffer

    def in_place(self, shard: int) -> memoryview | None:
        """The map of a shard whose samples can be read in its file: local, and not compressed. Else None."""
        if self.reader.manifest.shards[shard].codec != "none":
            return None
        return self.reader.local.mapped(shard)

    def keeps(self, shard: int) -> bool:
        """Whether the frames of a shard can be verified apart: not those of one compressed stream."""
        return self.reader.manifest.shards[shard].codec not in STREAMS

    def unchanged(self, frames: Sequence[FrameId]) -> list[FrameId]:
        """Those of these frames whose files are as they were when they were verified; see `Source`."""
        return self.reader.local.unchanged(frames)

    def check_again(self) -> None:
        """Look once more at the mapped files that were read."""
        self.in_place_reads.check_again()

    def recycle(self, buffer: Buffer | memoryview) -> None:
        """Take back the buffer of a frame, unless it is part of a mapped file."""
        if isinstance(buffer, np.ndarray):
            self._pool.give_back(buffer)
