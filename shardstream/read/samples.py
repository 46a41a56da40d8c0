"""Samples cut out of frames, column by column: keys, and a view of the bytes of each field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

    def expect(self, frames: Sequence[FrameId]) -> None:
        """These frames are going to be fetched, in this order."""
        self.reader.expect(frames)

    def counters(self) -> dict[str, Any]:
        """Bytes by tier, where they do not all come from local files."""
        return {} if self.reader.all_local else self.reader.counters

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

    def in_place(self, shard: int) -> memoryview | None:
        """The bytes of a shard whose samples can be cut out where they are: local and not compressed."""
        if self.reader.manifest.shards[shard].codec != "none":
            return None
        return self.reader.mapped(shard)

    def recycle(self, buffer: Buffer | memoryview) -> None:
        """Take back the buffer of a frame; others are part of a file in memory."""
        if isinstance(buffer, np.ndarray):
            self._decompressor.give_back(buffer)


class SamplePlan:
    """Where some samples of the order lie; many at once, since each step costs per shard.

    shard, frame: int64 [n]; a row's region is its frame, or the shard where that lies in memory as it is
    (`in_place`).  begin, size: int64 [K, n], the bytes of K fields within the region, the size -1 where a
    sample lacks the field.  key_begin, key_end: int64 [n], the key's bytes within those of its shard.
    """

    def __init__(self, source: SampleSource, shards: Ints, samples: Ints) -> None:
        count, columns = len(samples), source.columns
        self.source, self.shard = source, shards
        self.in_place = np.zeros(count, np.bool_)
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
            if source.in_place(int(shards[rows[0]])) is not None:
                self.in_place[rows] = True
                self.begin[:, rows] += index.frame_offset[self.frame[rows]].astype(np.int64)
            bounds = np.asarray(index.key_offset)
            self.key_begin[rows], self.key_end[rows] = bounds[mine], bounds[mine + 1]
        self.volume = np.maximum(self.size, 0).sum(axis=0)

    def units(self, sizes: list[int], most: int, direct: bool) -> Iterator[SampleUnit]:
        """The plan in units of whole batches, of at least one batch and about `most` bytes."""
        bounds = np.cumsum([0, *sizes])
        total = np.concatenate(([0], np.cumsum(self.volume)))[bounds]
        begin = 0
        while begin < len(sizes):
            end = int(np.searchsorted(total, total[begin] + most, side="right")) - 1
            end = max(begin + 1, end)
            yield SampleUnit(self, bounds[begin : end + 1].tolist(), int(total[end] - total[begin]), direct)
            begin = end


class SampleUnit:
    """Consecutive batches of a plan: batch i is its rows bounds[i] to bounds[i + 1].

    direct: let the consumer build them where all rows lie in memory as they are; handing small batches
    from thread to thread costs more than copying them.
    """

    def __init__(self, plan: SamplePlan, bounds: list[int], volume: int, direct: bool) -> None:
        self._plan, self._bounds, self.volume = plan, bounds, volume
        self.sizes = [end - begin for begin, end in pairwise(bounds)]
        self._rows = rows = slice(bounds[0], bounds[-1])
        in_place = plan.in_place[rows]
        region = np.where(in_place, -1, plan.frame[rows])
        self._regions = list(zip(plan.shard[rows].tolist(), region.tolist(), strict=True))
        reads: dict[FrameId, int] = {}
        for frame in self._regions:
            reads[frame] = reads.get(frame, 0) + 1
        self.needs = [self._need(frame, count) for frame, count in reads.items() if frame[1] >= 0]
        self.direct = direct and not self.needs

    def _need(self, frame: FrameId, reads: int) -> Need:
        index = self._plan.source.reader.index(frame[0])
        holds = int(index.frame_first[frame[1] + 1]) - int(index.frame_first[frame[1]])
        return Need(frame, int(index.frame_raw_size[frame[1]]), holds, reads)

    def prepare(self) -> None:
        """Verify the frames that are read where they lie; their pages are then in memory, too."""
        plan, reader = self._plan, self._plan.source.reader
        shards, frames = plan.shard[self._rows], plan.frame[self._rows]
        for shard in {shard for shard, region in self._regions if region < 0}:
            mine = frames[shards == shard]
            for frame in np.unique(mine[~reader.verified(shard)[mine]]).tolist():
                reader.stored_frame(shard, frame)

    def build(self, frames: Mapping[FrameId, Any]) -> Iterator[RawBatch]:
        """The batches, each to be done with before the next is asked for."""
        plan, reader = self._plan, self._plan.source.reader
        if not self.direct:
            self.prepare()
        views = {frame: memoryview(buffer) for frame, buffer in frames.items()}
        for shard, region in set(self._regions):
            if region < 0:
                views[shard, region] = memoryview(plan.source.in_place(shard) or b"")
        shard_keys = {shard: reader.index(shard).key_data for shard in {shard for shard, _ in self._regions}}
        at = 0
        for begin, end in pairwise(self._bounds):
            mine = self._regions[at : at + end - begin]
            at += end - begin
            raw = [views[region] for region in mine]
            keys = [
                shard_keys[shard][first:last].decode()
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
