"""Fixed-length blocks over token streams: one gather from frames into the batch tensor.

A shard is one stream of tokens, the documents of its frames one after another. With seq_len T, block
b is tokens [b T, b T + T], T + 1 of them, so that neighbours share one token: the last target of one
block is the first input of the next. A block belongs to the frame that holds its first token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.read.decompress import Buffer
from shardstream.read.prefetch import FrameId, Need
from shardstream.read.token_frames import TokenSource

__all__ = ["TokenPlan", "TokenUnit"]

Ints = NDArray[np.int64]
_GATHER = 128 << 10  # bytes


class TokenPlan:
    """Where some rows of the order lie; many batches at once, since each step costs per shard.

    A row is gathered from a region: a shard that lies in memory as it is, or a frame's buffer.
    """

    def __init__(self, source: TokenSource, shards: Ints, numbers: Ints) -> None:
        self.source = source
        count = len(numbers)
        self.token = numbers * source.seq_len  # of the row's first token within its shard
        self.frame, self.at, self.region = (np.empty(count, np.int64) for _ in range(3))
        self.whole = np.ones(count, np.bool_)  # False where a row must be put together from frames
        self.regions: list[tuple[int, int]] = []  # (shard, frame), the frame -1 for a whole shard
        self.needs: list[Need | None] = []
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        for rows in np.split(order, cuts) if count else []:
            self._place(int(shards[rows[0]]), rows, numbers[rows])

    def _place(self, shard: int, rows: Ints, numbers: Ints) -> None:
        source, layout = self.source, self.source.layout(shard)
        within = np.searchsorted(layout.first, numbers, side="right") - 1
        token = self.token[rows]
        at = layout.data[within] + (token - layout.start[within]) * source.dtype.itemsize
        index = source.reader.index(shard)
        self.frame[rows] = within
        if source.in_place(shard) is not None:
            self.at[rows] = at + np.asarray(index.frame_offset).astype(np.int64)[within]
            self.whole[rows] = token + source.seq_len < layout.start[within + 1]
            self.region[rows] = len(self.regions)
            self.regions.append((shard, -1))
            self.needs.append(None)
            return
        self.at[rows] = at
        frames, place = np.unique(within, return_inverse=True)
        self.region[rows] = place + len(self.regions)
        sizes = np.asarray(index.frame_raw_size)[frames].tolist()
        holds = (layout.first[frames + 1] - layout.first[frames]).tolist()
        for frame, size, held in zip(frames.tolist(), sizes, holds, strict=True):
            self.regions.append((shard, frame))
            self.needs.append(Need((shard, frame), int(size), held, 0))


class TokenUnit:
    """Consecutive batches of a plan: its rows from `begin` on, as many as `sizes` adds up to.

    out: the dtype of the tensors.  direct: copy straight from mapped shards, one batch at a time,
    where all rows lie in such; the consumer then does it itself, since handing small batches from
    thread to thread costs more than copying them.
    """

    def __init__(
        self, plan: TokenPlan, begin: int, sizes: list[int], out: np.dtype[Any], direct: bool = False
    ) -> None:
        self._plan, self._begin, self._out = plan, begin, out
        self.sizes = sizes
        self._rows = sum(sizes)
        self.volume = self._rows * (plan.source.seq_len + 1) * out.itemsize
        region = plan.region[begin : begin + self._rows]
        order = np.argsort(region, kind="stable")
        numbers, starts = np.unique(region[order], return_index=True)
        # The number of each region, and the rows of the unit that lie there.
        self._groups = list(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))
        self.needs: list[Need] = []
        for number, rows in self._groups:
            need = plan.needs[number]
            if need is not None:
                self.needs.append(need._replace(reads=len(rows)))
        self.direct = direct and not self.needs

    def prepare(self) -> None:
        """Verify what is copied directly; its pages are then in memory, too."""
        for number, rows in self._groups:
            self._verified(self._plan.regions[number][0], self._plan.frame[rows + self._begin])

    def build(self, frames: Mapping[FrameId, Buffer]) -> Iterable[NDArray[Any]]:
        """An array [B, seq_len + 1] for each batch."""
        return self._copied() if self.direct else self._gathered(frames)

    def _copied(self) -> Iterator[NDArray[Any]]:
        """Each array when it is asked for, row by row from the maps."""
        plan, length = self._plan, self._plan.source.seq_len + 1
        dtype = plan.source.dtype
        # Of the same size: read as the wanted type, so that a copy is a memcpy.
        kind = self._out if dtype.itemsize == self._out.itemsize else dtype
        maps: dict[int, NDArray[Any]] = {}
        for number, _ in self._groups:
            raw = np.frombuffer(plan.source.in_place(plan.regions[number][0]) or b"", np.uint8)
            maps[number] = raw[: len(raw) // dtype.itemsize * dtype.itemsize].view(kind)
        rows = slice(self._begin, self._begin + self._rows)
        region, whole = plan.region[rows].tolist(), plan.whole[rows].tolist()
        at, row = (plan.at[rows] // dtype.itemsize).tolist(), 0
        for size in self.sizes:
            table = np.empty((size, length), self._out)
            for out in table:
                if whole[row]:
                    out[:] = maps[region[row]][at[row] : at[row] + length]
                else:
                    shard = plan.regions[region[row]][0]
                    self._across(out, shard, int(plan.token[self._begin + row]))
                row += 1
            yield table

    def _gathered(self, frames: Mapping[FrameId, Buffer]) -> Iterator[NDArray[Any]]:
        """One array of all rows, gathered region by region, then cut into the batches."""
        plan, length = self._plan, self._plan.source.seq_len + 1
        slab = plan.source.slabs.take(self._rows * length * self._out.itemsize)
        table = slab.view(self._out).reshape(self._rows, length)
        for number, rows in self._groups:
            shard, frame = plan.regions[number]
            planned = rows + self._begin
            raw = frames[shard, frame] if frame >= 0 else self._verified(shard, plan.frame[planned])
            whole = plan.whole[planned]
            self._gather(table, rows[whole], raw, plan.at[planned[whole]])
            for row in rows[~whole].tolist():
                self._across(table[row], shard, int(plan.token[self._begin + row]))
        at = 0
        for size in self.sizes:
            yield table[at : at + size]
            at += size

    def _verified(self, shard: int, frames: Ints) -> Buffer:
        """The bytes of a shard that lies in memory, these frames of it verified."""
        source = self._plan.source
        mapped = source.in_place(shard)
        assert mapped is not None
        unseen = frames[~source.reader.verified(shard)[frames]]
        for frame in np.unique(unseen).tolist() if len(unseen) else ():
            source.reader.stored_frame(shard, frame)
        return np.frombuffer(mapped, np.uint8)

    def _across(self, out: NDArray[Any], shard: int, token: int) -> None:
        """One row that begins in one frame and ends in another."""
        source, layout = self._plan.source, self._plan.source.layout(shard)
        frame = int(np.searchsorted(layout.start, token, side="right")) - 1
        filled = 0
        while filled < len(out):
            raw = np.frombuffer(source.reader.stored_frame(shard, frame), np.uint8)
            begin, end = int(layout.start[frame]), int(layout.start[frame + 1])
            count = min(end - token, len(out) - filled)
            at = int(layout.data[frame]) + (token - begin) * source.dtype.itemsize
            some = raw[at : at + count * source.dtype.itemsize].view(source.dtype)
            out[filled : filled + count] = some
            filled, token, frame = filled + count, token + count, frame + 1

    def _gather(self, table: NDArray[Any], rows: Ints, raw: Buffer, at: Ints) -> None:
        """Copy the rows that begin at the bytes `at` of a buffer."""
        dtype, length = self._plan.source.dtype, self._plan.source.seq_len + 1
        # A row is one opaque item of a view that has an item at each byte: numpy then copies rows
        # with memcpy, many in one call.
        size = length * dtype.itemsize
        items: NDArray[np.void] = np.ndarray(max(0, len(raw) - size + 1), f"V{size}", raw, 0, (1,))
        same = dtype.itemsize == self._out.itemsize
        out = table.view(f"V{size}")[:, 0] if same else table
        # Some rows at a time, so that what lies between stays in the processor's cache.
        step = max(1, _GATHER // size)
        for begin in range(0, len(rows), step):
            found = items[at[begin : begin + step]]
            out[rows[begin : begin + step]] = found if same else found.view(dtype).reshape(-1, length)
