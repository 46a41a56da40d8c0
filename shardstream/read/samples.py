"""Samples cut out of frames: a key, and the bytes of each field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.format.index import ShardIndex
from shardstream.read.prefetch import FrameId, Need
from shardstream.read.reader import DatasetReader

__all__ = ["RawSample", "SampleSource", "SampleUnit"]

Ints = NDArray[np.int64]
RawSample = tuple[str, dict[str, bytes]]


class SampleSource:
    """The frames of a dataset, and which of its fields are wanted."""

    def __init__(self, reader: DatasetReader, fields: tuple[str, ...] | None) -> None:
        self.reader = reader
        names = [info.name for info in reader.manifest.fields]
        self.columns = [(c, n) for c, n in enumerate(names) if fields is None or n in fields]

    def name(self, shard: int, frame: int) -> str:
        """A frame, for messages."""
        return self.reader.frame_name(shard, frame)

    def fetch(self, shard: int, frame: int) -> memoryview:
        """The raw bytes of a frame."""
        return self.reader.frame(shard, frame)

    def recycle(self, buffer: memoryview) -> None:
        """Nothing: a frame may be part of a file in memory."""

    def cut(self, index: ShardIndex, sample: int, data: memoryview) -> RawSample:
        """The key and the fields of one sample, copied out of its frame."""
        offsets, sizes = index.field_offset[sample], index.field_size[sample]
        found: dict[str, bytes] = {}
        for column, name in self.columns:
            size = int(sizes[column])
            if size >= 0:
                start = int(offsets[column])
                found[name] = bytes(data[start : start + size])
        return index.key(sample), found


class SampleUnit:
    """Some consecutive batches of samples: shard and number within the shard, both int64 [n]."""

    direct = False

    def __init__(
        self,
        source: SampleSource,
        shards: Ints,
        samples: Ints,
        sizes: list[int],
        build: Callable[[RawSample], Any],
    ) -> None:
        self._source, self._build = source, build
        self.sizes = sizes
        reader = source.reader
        frames = np.empty(len(samples), np.int64)
        self.volume = 0
        for shard in np.unique(shards).tolist():
            mine = shards == shard
            index = reader.index(shard)
            first = np.asarray(index.frame_first).astype(np.int64)
            frames[mine] = np.searchsorted(first, samples[mine], side="right") - 1
            self.volume += int(np.maximum(np.asarray(index.field_size)[samples[mine]], 0).sum())
        self._rows = list(zip(shards.tolist(), samples.tolist(), frames.tolist(), strict=True))
        reads: dict[FrameId, int] = {}
        for shard, _, frame in self._rows:
            reads[shard, frame] = reads.get((shard, frame), 0) + 1
        self.needs = [self._need(frame, count) for frame, count in reads.items()]

    def _need(self, frame: FrameId, reads: int) -> Need:
        index = self._source.reader.index(frame[0])
        holds = int(index.frame_first[frame[1] + 1]) - int(index.frame_first[frame[1]])
        return Need(frame, int(index.frame_raw_size[frame[1]]), holds, reads)

    def prepare(self) -> None:
        """Nothing: a thread builds it all."""

    def build(self, frames: Mapping[FrameId, memoryview]) -> Iterable[list[Any]]:
        """The batches, each a list of built samples."""
        source, rows = self._source, iter(self._rows)
        for size in self.sizes:
            batch = []
            for _, (shard, sample, frame) in zip(range(size), rows, strict=False):
                raw = source.cut(source.reader.index(shard), sample, frames[shard, frame])
                batch.append(self._build(raw))
            yield batch
