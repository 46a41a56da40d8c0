"""Samples cut out of frames, column by column: keys, and a view of the bytes of each field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.read.decompress import Buffer, Decompressor
from shardstream.read.prefetch import FrameId, Need
from shardstream.read.reader import DatasetReader

__all__ = ["RawBatch", "SamplePlan", "SampleSource", "SampleUnit"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RawBatch:
    """The samples of a batch as they are stored: their keys, and for each field a view or None of each.

    The views are of frames that will be used again: whoever wants to keep bytes copies them.
    """

    keys: list[str]
    fields: dict[str, list[memoryview | None]]


class SampleSource:
    """The frames of a dataset as buffers, and which of its fields are wanted."""

    def __init__(self, reader: DatasetReader, fields: tuple[str, ...] | None) -> None:
        self.reader = reader
        names = [info.name for info in reader.manifest.fields]
        wanted = [(c, n) for c, n in enumerate(names) if fields is None or n in fields]
        self.columns = np.array([column for column, _ in wanted], np.int64)
        self.names = [name for _, name in wanted]
        self._decompressor = Decompressor()

    def name(self, shard: int, frame: int) -> str:
        """A frame, for messages."""
        return self.reader.frame_name(shard, frame)

    def fetch(self, shard: int, frame: int) -> Buffer | memoryview:
        """The raw bytes of a frame; a buffer may be longer."""
        if self.reader.manifest.shards[shard].codec != "zstd":
            return self.reader.frame(shard, frame)
        raw_size = int(self.reader.index(shard).frame_raw_size[frame])
        stored = self.reader.stored_frame(shard, frame)
        return self._decompressor.frame(stored, raw_size, self.name(shard, frame))

    def recycle(self, buffer: Buffer | memoryview) -> None:
        """Take back the buffer of a frame; others are part of a file in memory."""
        if isinstance(buffer, np.ndarray):
            self._decompressor.give_back(buffer)


class SamplePlan:
    """Where some samples of the order lie; many at once, since each step costs per shard.

    shard, frame: int64 [n].  begin, end: int64 [K][n], the bytes of K fields within their frame's raw
    bytes, both 0 where a sample lacks the field.  keys: the bytes of all keys of each row's shard, and
    where in them the row's key lies.
    """

    def __init__(self, source: SampleSource, shards: Ints, samples: Ints) -> None:
        count, columns = len(samples), source.columns
        self.source, self.shard = source, shards
        self.frame, self.key_begin, self.key_end = (np.empty(count, np.int64) for _ in range(3))
        self.begin, self.size = (np.empty((len(columns), count), np.int64) for _ in range(2))
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        for rows in np.split(order, cuts) if count else []:
            index, mine = source.reader.index(int(shards[rows[0]])), samples[rows]
            first = np.asarray(index.frame_first).astype(np.int64)
            self.frame[rows] = np.searchsorted(first, mine, side="right") - 1
            self.begin[:, rows] = index.field_offset[mine[:, None], columns].T
            self.size[:, rows] = index.field_size[mine[:, None], columns].T
            bounds = np.asarray(index.key_offset)
            self.key_begin[rows], self.key_end[rows] = bounds[mine], bounds[mine + 1]
        self.volume = np.maximum(self.size, 0).sum(axis=0)

    def units(self, sizes: list[int], most: int) -> Iterator[SampleUnit]:
        """The plan in units of whole batches, of at least one batch and about `most` bytes."""
        bounds = np.cumsum([0, *sizes])
        total = np.concatenate(([0], np.cumsum(self.volume)))[bounds]
        begin = 0
        while begin < len(sizes):
            end = int(np.searchsorted(total, total[begin] + most, side="right")) - 1
            end = max(begin + 1, end)
            yield SampleUnit(self, bounds[begin : end + 1].tolist(), int(total[end] - total[begin]))
            begin = end


class SampleUnit:
    """Consecutive batches of a plan: batch i is its rows bounds[i] to bounds[i + 1]."""

    direct = False

    def __init__(self, plan: SamplePlan, bounds: list[int], volume: int) -> None:
        self._plan, self._bounds, self.volume = plan, bounds, volume
        self.sizes = [end - begin for begin, end in pairwise(bounds)]
        rows = slice(bounds[0], bounds[-1])
        self._frames = list(zip(plan.shard[rows].tolist(), plan.frame[rows].tolist(), strict=True))
        reads: dict[FrameId, int] = {}
        for frame in self._frames:
            reads[frame] = reads.get(frame, 0) + 1
        self.needs = [self._need(frame, count) for frame, count in reads.items()]

    def _need(self, frame: FrameId, reads: int) -> Need:
        index = self._plan.source.reader.index(frame[0])
        holds = int(index.frame_first[frame[1] + 1]) - int(index.frame_first[frame[1]])
        return Need(frame, int(index.frame_raw_size[frame[1]]), holds, reads)

    def prepare(self) -> None:
        """Nothing: a thread builds it all."""

    def build(self, frames: Mapping[FrameId, Any]) -> Iterator[RawBatch]:
        """The batches, each to be done with before the next is asked for."""
        plan, reader = self._plan, self._plan.source.reader
        views = {frame: memoryview(buffer) for frame, buffer in frames.items()}
        at = 0
        for begin, end in pairwise(self._bounds):
            mine = self._frames[at : at + end - begin]
            at += end - begin
            raw = [views[frame] for frame in mine]
            keys = [
                reader.index(shard).key_data[first:last].decode()
                for (shard, _), first, last in zip(
                    mine, plan.key_begin[begin:end].tolist(), plan.key_end[begin:end].tolist(), strict=True
                )
            ]
            fields: dict[str, list[memoryview | None]] = {}
            for column, name in enumerate(plan.source.names):
                firsts = plan.begin[column, begin:end].tolist()
                sizes = plan.size[column, begin:end].tolist()
                fields[name] = [
                    data[first : first + size] if size >= 0 else None
                    for data, first, size in zip(raw, firsts, sizes, strict=True)
                ]
            yield RawBatch(keys, fields)
