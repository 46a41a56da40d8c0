"""Samples cut out of frames, column by column: keys, and a view of the bytes of each field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.order.generators import Generators
from shardstream.read.buffers import BufferPool
from shardstream.read.engine.frames import FrameId, Need
from shardstream.read.mapped_frames import InPlace
from shardstream.read.samples.source import SampleSource

__all__ = ["RawBatch", "SamplePlan", "SampleUnit"]

Ints = NDArray[np.int64]
_SHARD = 32  # the number of a region has the shard above this bit, and the frame below it
_IN_PLACE = (1 << _SHARD) - 1  # in place of the frame: the whole shard


@dataclass(slots=True)  # frozen, it would take five times as long to make
class RawBatch:
    """The B samples of a batch as they are stored.

    Attributes:
        keys: The key of each sample.
        fields: For each field the bytes of each sample, or None if it lacks the field. They are views of
            memory that will be used again, so copy bytes that are needed for longer.
        gaps: The fields that some of the samples may lack.
        shards: int64 [B], the shard of each sample.
        draws: float32 [B, R], random numbers of each sample, or None.
        generators: The random generator of each sample, or None.
        memory: Where memory for batches comes from. None: from the system.
    """

    keys: list[str]
    fields: dict[str, list[memoryview | None]]
    gaps: Sequence[str]
    shards: Ints | None = None
    draws: NDArray[np.float32] | None = None
    generators: Generators | None = None
    memory: BufferPool | None = None

    def only(self, row: int) -> RawBatch:
        """A batch of a single sample of this batch."""
        one = slice(row, row + 1)
        fields = {name: views[one] for name, views in self.fields.items()}
        gaps = [name for name in self.gaps if fields[name][0] is None]
        shards = None if self.shards is None else self.shards[one]
        draws = None if self.draws is None else self.draws[one]
        generators = None if self.generators is None else self.generators[one]
        return RawBatch(self.keys[one], fields, gaps, shards, draws, generators, self.memory)


class SamplePlan:
    """Where n samples of the order lie. It is made for many batches at once, since each shard costs a step.

    Args:
        source: Of the samples, with K fields.
        shards: int64 [n], the shard of each sample.
        samples: int64 [n], the number of each sample in its shard.
        draws: float32 [n, R], random numbers of each sample, or None.

    Attributes:
        generators: The random generators of the samples, or None.
        shard: int64 [n], the shard of each sample.
        frame: int64 [n], the frame of each sample.
        region: int64 [n], a number for the memory that holds the sample, see `where`: its frame, or its shard
            if the file is mapped and not compressed.
        begin: int64 [K, n], where each field begins in the region, in bytes.
        size: int64 [K, n], the bytes of each field; -1 if the sample lacks it.
        key_begin: int64 [n], where the key begins in the keys of the shard, in bytes.
        key_end: int64 [n], where the key ends there.
        volume: int64 [n], the bytes of all fields of each sample.
        gaps: The fields that some of the samples lack.
    """

    def __init__(
        self, source: SampleSource, shards: Ints, samples: Ints, draws: NDArray[np.float32] | None = None
    ) -> None:
        count, columns = len(samples), source.columns
        self.draws = draws
        self.generators: Generators | None = None
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
        """(shard, frame) of a region; the frame is -1 if the region is the whole shard."""
        frame = region & _IN_PLACE
        return region >> _SHARD, -1 if frame == _IN_PLACE else frame

    def units(self, sizes: list[int], most: int, direct: bool, grows: int = 0) -> Iterator[SampleUnit]:
        """The plan as units of whole batches.

        Args:
            sizes: How many samples each batch has.
            most: About how many bytes a unit has. It has at least one batch.
            direct: See `SampleUnit`.
            grows: See `Unit`.
        """
        bounds = np.cumsum([0, *sizes])
        total = np.concatenate(([0], np.cumsum(self.volume)))[bounds]
        begin = 0
        while begin < len(sizes):
            end = int(np.searchsorted(total, total[begin] + most, side="right")) - 1
            end = max(begin + 1, end)
            volume = int(total[end] - total[begin])
            yield SampleUnit(self, bounds[begin : end + 1].tolist(), volume, direct, grows)
            begin = end


class SampleUnit:
    """Consecutive batches of a plan.

    Args:
        plan: Of the samples.
        bounds: Batch i has the rows bounds[i] to bounds[i + 1] of the plan.
        volume: The bytes of all batches.
        direct: Whether the consumer builds the batches. This is for small batches: to hand a batch from
            thread to thread costs more than to build it.
        grows: See `Unit`.
    """

    def __init__(
        self, plan: SamplePlan, bounds: list[int], volume: int, direct: bool, grows: int = 0
    ) -> None:
        self._plan, self._bounds, self.direct, self.grows = plan, bounds, direct, grows
        self.volume = 0 if direct else volume
        self.sizes = [end - begin for begin, end in pairwise(bounds)]
        self._rows = slice(bounds[0], bounds[-1])
        # The regions of the unit; and for each row the index of its region among them.
        numbers, self._place, reads = np.unique(
            plan.region[self._rows], return_inverse=True, return_counts=True
        )
        self._regions = [plan.where(number) for number in numbers.tolist()]
        counts = zip(self._regions, reads.tolist(), strict=True)
        self.needs = [self._need(frame, count) for frame, count in counts if frame[1] >= 0]
        self._in_place = InPlace(
            plan.source.in_place_reads,
            [shard if region < 0 else -1 for shard, region in self._regions],
            self._place,
            plan.frame[self._rows],
        )
        self.unverified = self._in_place.unverified

    def _need(self, frame: FrameId, reads: int) -> Need:
        index = self._plan.source.reader.index(frame[0])
        holds = int(index.frame_first[frame[1] + 1]) - int(index.frame_first[frame[1]])
        return Need(frame, int(index.frame_raw_size[frame[1]]), holds, reads)

    def parts(self, singles: bool) -> list[SampleUnit]:
        """The same in units of one batch each; if it is one batch, and `singles`, of one sample each."""
        bounds = self._bounds
        if len(bounds) == 2 and singles:
            bounds = list(range(bounds[0], bounds[1] + 1))
        if len(bounds) == 2:
            return []
        more = self.volume, self.direct, self.grows
        return [SampleUnit(self._plan, list(pair), *more) for pair in pairwise(bounds)]

    def prepare(self) -> None:
        """Verify the frames that are read in mapped files. This also reads their pages into memory."""
        self._in_place.begin()

    def build(self, frames: Mapping[FrameId, Any]) -> Iterator[RawBatch]:
        """The batches. The bytes of a batch are only valid until the next batch is asked for."""
        plan, reader = self._plan, self._plan.source.reader
        views, keys_of, files = [], [], self._in_place.begin()
        for shard, region in self._regions:
            buffer = frames[shard, region] if region >= 0 else files[shard]
            views.append(memoryview(buffer))
            keys_of.append(reader.index(shard).key_data)
        # Lists of all rows at once: numpy costs as much for the few rows of a batch.
        rows, places = self._rows, self._place.tolist()
        keys = [
            str(keys_of[place][first:last], "utf-8")
            for place, first, last in zip(
                places, plan.key_begin[rows].tolist(), plan.key_end[rows].tolist(), strict=True
            )
        ]
        begins, sizes = plan.begin[:, rows].tolist(), plan.size[:, rows].tolist()
        at = 0
        for begin, end in pairwise(self._bounds):
            mine = slice(at, at + end - begin)
            at = mine.stop
            raw = [views[place] for place in places[mine]]
            fields: dict[str, list[memoryview | None]] = {}
            for name, firsts, counts in zip(plan.source.names, begins, sizes, strict=True):
                fields[name] = [
                    data[first : first + size] if size >= 0 else None
                    for data, first, size in zip(raw, firsts[mine], counts[mine], strict=True)
                ]
            draws = None if plan.draws is None else plan.draws[begin:end]
            generators = None if plan.generators is None else plan.generators[begin:end]
            self._in_place.watch()
            yield RawBatch(
                keys[mine], fields, plan.gaps, plan.shard[begin:end], draws, generators, plan.source.batches
            )
        self._in_place.end()
