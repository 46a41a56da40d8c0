"""Blocks of tokens: which frames they need, and how they are gathered into the tensor of a batch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.order.generators import Generators
from shardstream.order.lanes import by_value, places_below
from shardstream.read.buffers import Buffer
from shardstream.read.engine.frames import FrameId, Need
from shardstream.read.mapped_frames import InPlace
from shardstream.read.tokens.document_bounds import DocumentBounds
from shardstream.read.tokens.gather import Rows, address, gather_runs
from shardstream.read.tokens.source import TokenSource

__all__ = ["GENERATORS", "TokenPlan", "TokenUnit"]

GENERATORS = "__generators__"  # the field of a batch with the generators of its rows, if the plan has them

Ints = NDArray[np.int64]
Batch = dict[str, Any]
_PADDING = 0  # the region that every plan begins with


class TokenPlan:
    """Where some rows of the order lie. It is made for many batches at once, since each shard costs a step.

    A row consists of pieces. A piece is copied from a region, which is a mapped shard, the buffer of a frame,
    or padding.

    Args:
        source: Of the tokens.
        shards: int64 [n], the shard of each row.
        numbers: int64 [n], the block of each row in its shard.
        boundaries: Whether batches say where documents begin.

    Attributes:
        generators: The random generators of the rows, or None.
        regions: (shard, frame) of each region; the frame is -1 if it is a mapped shard.
        needs: The frame that each region needs, or None.
        frame: int64 [p], the frame of each piece.
        region: int64 [p], the region of each piece.
        at: int64 [p], where each piece begins in its region, in bytes.
        length: int64 [p], how many tokens each piece has.
        bounds: int64 [n + 1], the first piece of each row, then the number of pieces.
        segments: Where documents begin, or None if batches do not say so.
    """

    def __init__(self, source: TokenSource, shards: Ints, numbers: Ints, boundaries: bool) -> None:
        self.source = source
        self.generators: Generators | None = None
        self.regions: list[tuple[int, int]] = [(-1, -1)]
        self.needs: list[Need | None] = [None]
        order = by_value(shards)
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        groups = np.split(order, cuts) if len(order) else []
        parts = [self._place(int(shards[rows[0]]), rows, numbers[rows]) for rows in groups]
        self.bounds, self.frame, self.region, self.at, self.length = _by_row(parts, len(numbers))
        self.segments: DocumentBounds | None = None
        if boundaries or source.options.padded:
            self.segments = DocumentBounds.of(source, groups, shards, numbers)

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
            frames, region = places_below(frame, len(layout.data))
            region += len(self.regions)
            sizes = np.asarray(index.frame_raw_size)[frames].tolist()
            for number, raw, reads in zip(frames.tolist(), sizes, blocks.reads[frames].tolist(), strict=True):
                self.regions.append((shard, number))
                self.needs.append(Need((shard, number), int(raw), reads, 0))
        short = length - blocks.used(numbers)
        if short.any():
            # Padding is the last piece of a row.
            padded = np.flatnonzero(short)
            none = np.zeros(len(padded), np.int64)
            row, order = _sorted(np.concatenate((row, padded)))
            frame, region, at, size = (
                np.concatenate(pair)[order]
                for pair in ((frame, none), (region, none), (at, none), (size, short[padded]))
            )
        return rows[row], frame, region, at, size


class TokenUnit:
    """Consecutive batches of a plan.

    Args:
        plan: Of the rows.
        begin: The first row of the first batch.
        sizes: How many rows each batch has.
        out: The dtype of the tensors.
        boundaries: Whether batches say where documents begin.
        direct: Whether the consumer copies the tokens, one batch at a time. This is for small batches: to
            hand a batch from thread to thread costs more than to copy it, and many copies do not fit the
            CPU's cache.
        grows: See `Unit`.
    """

    def __init__(
        self,
        plan: TokenPlan,
        begin: int,
        sizes: list[int],
        out: np.dtype[Any],
        boundaries: bool = False,
        direct: bool = False,
        grows: int = 0,
    ) -> None:
        self._plan, self._begin, self._out, self._boundaries = plan, begin, out, boundaries
        self.grows = grows
        self.sizes = sizes
        self._rows = sum(sizes)
        self._length = plan.source.options.seq_len + 1
        self._pieces = slice(int(plan.bounds[begin]), int(plan.bounds[begin + self._rows]))
        # The regions of the unit; and for each piece the index of its region among them.
        region = plan.region[self._pieces]
        numbers, self._place = places_below(region, len(plan.regions))
        reads_of = np.bincount(self._place, minlength=len(numbers))
        self.needs: list[Need] = []
        for number, reads in zip(numbers.tolist(), reads_of.tolist(), strict=True):
            need = plan.needs[number]
            if need is not None:
                self.needs.append(Need(need.frame, need.size, need.holds, reads))
        self._regions = [plan.regions[number] for number in numbers.tolist()]
        self._in_place = InPlace(
            plan.source.in_place_reads,
            [shard if frame < 0 else -1 for shard, frame in self._regions],
            self._place,
            plan.frame[self._pieces],
        )
        self.unverified = self._in_place.unverified
        self.direct = direct and plan.segments is None
        self.volume = 0 if self.direct else self._rows * self._length * out.itemsize

    def parts(self, singles: bool) -> list[TokenUnit]:
        """The same in units of one batch each; if it is one batch, and `singles`, of one block each."""
        sizes = [1] * self._rows if len(self.sizes) == 1 and singles else self.sizes
        if len(sizes) == 1:
            return []
        begins = accumulate(sizes[:-1], initial=self._begin)
        more = self._out, self._boundaries, self.direct, self.grows
        return [
            TokenUnit(self._plan, begin, [size], *more) for begin, size in zip(begins, sizes, strict=False)
        ]

    def prepare(self) -> None:
        """Verify the frames that are copied from mapped files. This also reads their pages into memory."""
        self._in_place.begin()

    def build(self, frames: Mapping[FrameId, Buffer]) -> Iterable[Batch]:
        """The batches: dicts with an array "tokens" [B, seq_len + 1], and the fields of `DocumentBounds`.

        Raises:
            CorruptionError: A frame is damaged.
        """
        files = self._in_place.begin()
        buffers = [self._buffer(frames, files, *region) for region in self._regions]
        return self._batches(buffers)

    def _batches(self, buffers: list[Buffer]) -> Iterator[Batch]:
        # The generator refers to `buffers` until the last batch is copied: the code below uses addresses.
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
            one[mixed] = one[np.argmax(many == 1)]  # a placeholder: these rows are overwritten
            rows = Rows(one, length, plan.source.dtype, buffers)
        others, joined = mixed.tolist(), self._mixed(mixed, runs, sizes, bounds)
        if not self.direct:
            memory = plan.source.batches.lease(self._rows * length * self._out.itemsize)
            table = memory.view(self._out).reshape(self._rows, length)
            if rows is not None:
                rows.fill(table)
            if others:
                table[mixed] = joined
            self._in_place.end()
        first = 0
        for size in self.sizes:
            if not self.direct:
                tokens = table[first : first + size]
            else:
                tokens = self._own(rows, first, size)
                if others:
                    low, high = bisect_left(others, first), bisect_left(others, first + size)
                    if low < high:
                        tokens[mixed[low:high] - first] = joined[low:high]
                self._in_place.watch()
            batch: Batch = {"tokens": tokens}
            if plan.segments is not None:
                where = slice(self._begin + first, self._begin + first + size)
                batch |= plan.segments.batch(where, self._boundaries)
            if plan.generators is not None:
                begin = self._begin + first
                batch[GENERATORS] = plan.generators[begin : begin + size]
            yield batch
            first += size
        if self.direct:
            self._in_place.end()

    def _own(self, rows: Rows | None, first: int, size: int) -> NDArray[Any]:
        """A new array for one batch, filled with its rows of one piece."""
        if rows is None:
            return np.empty((size, self._length), self._out)
        return rows.copy(first, first + size, self._out)

    def _mixed(self, rows: Ints, runs: Ints, sizes: Ints, bounds: Ints) -> NDArray[Any]:
        """The rows that consist of several pieces, [rows, length]."""
        if not len(rows):
            return np.empty((0, self._length), self._plan.source.dtype)
        many = bounds[rows + 1] - bounds[rows]
        pieces = np.repeat(bounds[rows] - (np.cumsum(many) - many), many)
        pieces += np.arange(len(pieces), dtype=np.int64)
        return gather_runs(runs[pieces], sizes[pieces], self._plan.source.dtype).reshape(-1, self._length)

    def _buffer(
        self, frames: Mapping[FrameId, Buffer], files: Mapping[int, memoryview], shard: int, frame: int
    ) -> Buffer:
        source = self._plan.source
        if shard < 0:
            return source.padding
        if frame >= 0:
            return frames[shard, frame]
        return np.frombuffer(files[shard], np.uint8)


def _sorted(rows: Ints) -> tuple[Ints, Ints]:
    """Row numbers in their order, and the stable order that sorts them."""
    order = np.argsort(rows, kind="stable")
    return rows[order], order


def _by_row(parts: list[tuple[Ints, ...]], rows: int) -> list[Ints]:
    """Where each row begins, then the number of pieces; and the other columns of all parts, by row."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else []
    if not columns:
        return [np.zeros(rows + 1, np.int64), *(np.empty(0, np.int64) for _ in range(4))]
    row = columns[0]
    pieces = np.bincount(row, minlength=rows)
    bounds = np.concatenate(([0], np.cumsum(pieces)))
    if len(row) == rows and int(pieces.max()) == 1:  # most plans: to sort is to put each piece in its place
        found = [np.empty_like(column) for column in columns[1:]]
        for column, sorted_column in zip(columns[1:], found, strict=True):
            sorted_column[row] = column
        return [bounds, *found]
    order = np.argsort(row, kind="stable")
    return [bounds, *(column[order] for column in columns[1:])]
