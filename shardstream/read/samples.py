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
_SHARD = 32  # the bits of a frame's number in that of a region
_IN_PLACE = (1 << _SHARD) - 1  # instead of a frame's number: the whole shard


@dataclass(frozen=True)
class RawBatch:
    """The samples of a batch as they are stored: their keys, and for each field a view or None of each.

    shards: the number of each sample's shard.  draws: a random number of each, where the plan was given any.
    The views are of frames that will be used again: whoever wants to keep bytes copies them.
    gaps: the fields that some of the samples may lack.
    """

    keys: list[str]
    fields: dict[str, list[memoryview | None]]
    gaps: Sequence[str]
    shards: Ints | None = None
    draws: NDArray[np.uint64] | None = None


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

    shard, frame: int64 [n].  region: int64 [n], a number for what the row is cut out of, see `where`: its
    frame, or its shard where that lies in memory as it is.  begin, size: int64 [K, n], the bytes of K fields
    within the region, the size -1 where a sample lacks the field.  key_begin, key_end: int64 [n], the key's
    bytes within those of its shard.  draws: uint64 [n], random numbers that go with the samples, or None.
    """

    def __init__(
        self, source: SampleSource, shards: Ints, samples: Ints, draws: NDArray[np.uint64] | None = None
    ) -> None:
        count, columns = len(samples), source.columns
        self.draws = draws
        self.source, self.shard = source, shards
        self.frame, self.region, self.key_begin, self.key_end = (np.empty(count, np.int64) for _ in range(4))
        self.begin, self.size = (np.empty((len(columns), count), np.int64) for _ in range(2))
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        for rows in np.split(order, cuts) if count else []:
            index, mine = source.reader.index(int(shards[rows[0]])), samples[rows]
            first = np.asarray(index.frame_first).astype(np.int64)
            self.frame[rows] = frame = np.searchsorted(first, mine, side="right") - 1
            self.region[rows] = frame + (int(shards[rows[0]]) << _SHARD)
            self.begin[:, rows] = index.field_offset[mine[:, None], columns].T
            self.size[:, rows] = index.field_size[mine[:, None], columns].T
            if source.in_place(int(shards[rows[0]])) is not None:
                self.region[rows] |= _IN_PLACE
                self.begin[:, rows] += index.frame_offset[frame].astype(np.int64)
            bounds = np.asarray(index.key_offset)
            self.key_begin[rows], self.key_end[rows] = bounds[mine], bounds[mine + 1]
        self.volume = np.maximum(self.size, 0).sum(axis=0)
        lacking: Any = (self.size < 0).any(axis=1).tolist()
        self.gaps = [name for name, some in zip(source.names, lacking, strict=True) if some]

    @staticmethod
    def where(region: int) -> FrameId:
        """(shard, frame) of a region, the frame -1 where it is the shard."""
        frame = region & _IN_PLACE
        return region >> _SHARD, -1 if frame == _IN_PLACE else frame

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

    direct: let the consumer build them; handing small batches from thread to thread costs more than
    copying them.
    """

    def __init__(self, plan: SamplePlan, bounds: list[int], volume: int, direct: bool) -> None:
        self._plan, self._bounds, self.direct = plan, bounds, direct
        self.volume = 0 if direct else volume
        self.sizes = [end - begin for begin, end in pairwise(bounds)]
        self._rows = slice(bounds[0], bounds[-1])
        # The regions of the unit, and the place of each row's region among them.
        numbers, self._place, reads = np.unique(
            plan.region[self._rows], return_inverse=True, return_counts=True
        )
        self._regions = [plan.where(number) for number in numbers.tolist()]
        counts = zip(self._regions, reads.tolist(), strict=True)
        self.needs = [self._need(frame, count) for frame, count in counts if frame[1] >= 0]
        mine = plan.frame[self._rows]
        self.unverified = [
            (shard, frame)
            for place, (shard, region) in enumerate(self._regions)
            if region < 0
            for frame in plan.source.reader.unverified(shard, mine[self._place == place])
        ]

    def _need(self, frame: FrameId, reads: int) -> Need:
        index = self._plan.source.reader.index(frame[0])
        holds = int(index.frame_first[frame[1] + 1]) - int(index.frame_first[frame[1]])
        return Need(frame, int(index.frame_raw_size[frame[1]]), holds, reads)

    def prepare(self) -> None:
        """Verify the frames that are read where they lie; their pages are then in memory, too."""
        self._plan.source.reader.verify(self.unverified)

    def build(self, frames: Mapping[FrameId, Any]) -> Iterator[RawBatch]:
        """The batches, each to be done with before the next is asked for."""
        plan, reader = self._plan, self._plan.source.reader
        if not self.direct:
            self.prepare()
        views, keys_of = [], []
        for shard, region in self._regions:
            buffer = frames[shard, region] if region >= 0 else plan.source.in_place(shard)
            views.append(memoryview(b"" if buffer is None else buffer))
            keys_of.append(reader.index(shard).key_data)
        at = 0
        for begin, end in pairwise(self._bounds):
            mine = self._place[at : at + end - begin].tolist()
            at += end - begin
            raw = [views[place] for place in mine]
            keys = [
                keys_of[place][first:last].decode()
                for place, first, last in zip(
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
            draws = None if plan.draws is None else plan.draws[begin:end]
            yield RawBatch(keys, fields, plan.gaps, plan.shard[begin:end], draws)
