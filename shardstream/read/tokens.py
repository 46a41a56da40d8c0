"""Blocks of tokens: which frames they need, and one gather from those into the batch tensor."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.read.decompress import Buffer
from shardstream.read.gather import Rows, address, gather_runs
from shardstream.read.prefetch import FrameId, Need
from shardstream.read.segments import Segments
from shardstream.read.token_frames import TokenSource

__all__ = ["TokenPlan", "TokenUnit"]

Ints = NDArray[np.int64]
Batch = dict[str, Any]
_PADDING = 0  # the region that every plan begins with


class TokenPlan:
    """Where some rows of the order lie; many batches at once, since each step costs per shard.

    A row consists of pieces. A piece is copied from a region: a shard that lies in memory as it is,
    a frame's buffer, or padding. boundaries: whether batches say where documents begin.
    """

    def __init__(self, source: TokenSource, shards: Ints, numbers: Ints, boundaries: bool) -> None:
        self.source = source
        self.regions: list[tuple[int, int]] = [(-1, -1)]  # (shard, frame), the frame -1 for a whole shard
        self.needs: list[Need | None] = [None]
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        groups = np.split(order, cuts) if len(order) else []
        parts = [self._place(int(shards[rows[0]]), rows, numbers[rows]) for rows in groups]
        row, self.frame, self.region, self.at, self.length = _by_row(parts)
        self.bounds = np.searchsorted(row, np.arange(len(numbers) + 1, dtype=np.int64))
        self.segments: Segments | None = None
        if boundaries or source.options.padded:
            self.segments = Segments.of(source, groups, shards, numbers)

    def _place(self, shard: int, rows: Ints, numbers: Ints) -> tuple[Ints, ...]:
        """(row, frame, region, offset in the region, length) of the pieces of one shard's rows."""
        source, blocks = self.source, self.source.blocks(shard)
        layout, length = blocks.layout, source.options.seq_len + 1
        mapped = source.in_place(shard) is not None
        row, frame, token, size = blocks.pieces(numbers, not mapped)
        at = layout.data[frame] + (token - layout.start[frame]) * source.dtype.itemsize
        index = source.reader.index(shard)
        if mapped:
            at += np.asarray(index.frame_offset).astype(np.int64)[frame]
            region = np.full(len(row), len(self.regions), np.int64)
            self.regions.append((shard, -1))
            self.needs.append(None)
        else:
            frames, region = np.unique(frame, return_inverse=True)
            region += len(self.regions)
            sizes = np.asarray(index.frame_raw_size)[frames].tolist()
            for number, raw, reads in zip(frames.tolist(), sizes, blocks.reads[frames].tolist(), strict=True):
                self.regions.append((shard, number))
                self.needs.append(Need((shard, number), int(raw), reads, 0))
        short = length - blocks.used(numbers)
        if short.any():
            # Padding ends a row: it is a last piece of it.
            padded = np.flatnonzero(short)
            none = np.zeros(len(padded), np.int64)
            row, order = _sorted(np.concatenate((row, padded)))
            frame, region, at, size = (
                np.concatenate(pair)[order]
                for pair in ((frame, none), (region, none), (at, none), (size, short[padded]))
            )
        return rows[row], frame, region, at, size


class TokenUnit:
    """Consecutive batches of a plan: its rows from `begin` on, as many as `sizes` adds up to.

    out: the dtype of the tensors.  direct: the consumer copies, one batch at a time, since handing small
    batches from thread to thread costs more than copying them, and copies of many lie in no cache.
    """

    def __init__(
        self,
        plan: TokenPlan,
        begin: int,
        sizes: list[int],
        out: np.dtype[Any],
        boundaries: bool = False,
        direct: bool = False,
    ) -> None:
        self._plan, self._begin, self._out, self._boundaries = plan, begin, out, boundaries
        self.sizes = sizes
        self._rows = sum(sizes)
        self._length = plan.source.options.seq_len + 1
        self._pieces = slice(int(plan.bounds[begin]), int(plan.bounds[begin + self._rows]))
        # The regions of the unit, and the place of each piece's region among them.
        self._numbers, self._place, counts = np.unique(
            plan.region[self._pieces], return_inverse=True, return_counts=True
        )
        self.needs: list[Need] = []
        for number, reads in zip(self._numbers.tolist(), counts.tolist(), strict=True):
            need = plan.needs[number]
            if need is not None:
                self.needs.append(Need(need.frame, need.size, need.holds, reads))
        mine = plan.frame[self._pieces]
        self.unverified = [
            (shard, one)
            for place, (shard, frame) in enumerate(map(plan.regions.__getitem__, self._numbers.tolist()))
            if frame < 0 and self._numbers[place] != _PADDING
            for one in plan.source.reader.unverified(shard, mine[self._place == place])
        ]
        self.direct = direct and plan.segments is None
        self.volume = 0 if self.direct else self._rows * self._length * out.itemsize

    def prepare(self) -> None:
        """Verify what is copied directly; its pages are then in memory, too."""
        self._plan.source.reader.verify(self.unverified)

    def build(self, frames: Mapping[FrameId, Buffer]) -> Iterable[Batch]:
        """A dict with an array "tokens" [B, seq_len + 1] for each batch, and what else was asked for."""
        if not self.direct:
            self.prepare()
        buffers = [self._buffer(frames, *self._plan.regions[number]) for number in self._numbers.tolist()]
        return self._batches(buffers)

    def _batches(self, buffers: list[Buffer]) -> Iterator[Batch]:
        # `buffers` is held until the last batch is copied: what follows knows addresses only.
        plan, length = self._plan, self._length
        at, sizes = plan.at[self._pieces], plan.length[self._pieces]
        room = np.array([len(buffer) for buffer in buffers], np.int64)[self._place]
        if (at < 0).any() or (at + sizes * plan.source.dtype.itemsize > room).any():
            raise CorruptionError(f"{plan.source.reader.url}: a block leaves its frame; repack it")
        runs = np.array([address(buffer) for buffer in buffers], np.int64)[self._place] + at
        bounds = plan.bounds[self._begin : self._begin + self._rows + 1] - self._pieces.start
        many = np.diff(bounds)
        mixed = np.flatnonzero(many != 1)
        rows = None
        if len(mixed) < self._rows:
            one = runs[bounds[:-1]]
            one[mixed] = one[np.argmax(many == 1)]  # any row will do in their place
            rows = Rows(one, length, plan.source.dtype)
        others, joined = mixed.tolist(), self._mixed(mixed, runs, sizes, bounds)
        if not self.direct:
            slab = plan.source.slabs.take(self._rows * length * self._out.itemsize)
            table = slab.view(self._out).reshape(self._rows, length)
            if rows is not None:
                rows.fill(table)
            if others:
                table[mixed] = joined
        first = 0
        for size in self.sizes:
            if not self.direct:
                tokens = table[first : first + size]
            else:
                tokens = self._own(rows, first, size)
                low, high = bisect_left(others, first), bisect_left(others, first + size)
                if low < high:
                    tokens[mixed[low:high] - first] = joined[low:high]
            batch: Batch = {"tokens": tokens}
            if plan.segments is not None:
                where = slice(self._begin + first, self._begin + first + size)
                batch |= plan.segments.batch(where, self._boundaries)
            yield batch
            first += size

    def _own(self, rows: Rows | None, first: int, size: int) -> NDArray[Any]:
        """An array of its own for one batch."""
        if rows is None:
            return np.empty((size, self._length), self._out)
        return rows.copy(first, first + size, self._out)

    def _mixed(self, rows: Ints, runs: Ints, sizes: Ints, bounds: Ints) -> NDArray[Any]:
        """The rows that consist of several pieces, put together."""
        if not len(rows):
            return np.empty((0, self._length), self._plan.source.dtype)
        many = bounds[rows + 1] - bounds[rows]
        pieces = np.repeat(bounds[rows] - (np.cumsum(many) - many), many)
        pieces += np.arange(len(pieces), dtype=np.int64)
        return gather_runs(runs[pieces], sizes[pieces], self._plan.source.dtype).reshape(-1, self._length)

    def _buffer(self, frames: Mapping[FrameId, Buffer], shard: int, frame: int) -> Buffer:
        source = self._plan.source
        if shard < 0:
            return source.padding
        if frame >= 0:
            return frames[shard, frame]
        mapped = source.in_place(shard)
        assert mapped is not None
        return np.frombuffer(mapped, np.uint8)


def _sorted(rows: Ints) -> tuple[Ints, Ints]:
    """Row numbers in their order, and the stable order that sorts them."""
    order = np.argsort(rows, kind="stable")
    return rows[order], order


def _by_row(parts: list[tuple[Ints, ...]]) -> list[Ints]:
    """The columns of all parts, in the order of their first one."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else []
    if not columns:
        return [np.empty(0, np.int64) for _ in range(5)]
    rows, order = _sorted(columns[0])
    return [rows, *(column[order] for column in columns[1:])]
