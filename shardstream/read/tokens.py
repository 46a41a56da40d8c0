"""Fixed-length blocks over token streams: one gather from frames into the batch tensor.

A shard is one stream of tokens, the documents of its frames one after another. With seq_len T, block
b is tokens [b T, b T + T], T + 1 of them, so that neighbours share one token: the last target of one
block is the first input of the next. A block belongs to the frame that holds its first token.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.format.index import ShardIndex
from shardstream.read.decompress import Buffer, Decompressor
from shardstream.read.prefetch import FrameId, Need
from shardstream.read.reader import DatasetReader

__all__ = ["Layout", "Slabs", "TokenPlan", "TokenSource", "TokenUnit", "blocks"]

Ints = NDArray[np.int64]
_PREFIXES = 64 << 20
_GATHER = 128 << 10


def blocks(tokens: int, seq_len: int) -> int:
    """How many blocks a stream of `tokens` gives; the tokens after the last one are left out."""
    return max(0, (tokens - 1) // seq_len)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of one shard lie, in F frames.

    data: [F] byte offset of the tokens within the frame's raw bytes.  start: [F + 1] number of the
    frame's first token in the shard.  first: [F + 1] number of the first block that begins in it.
    """

    data: Ints
    start: Ints
    first: Ints

    @classmethod
    def of(cls, index: ShardIndex, column: int, itemsize: int, seq_len: int, where: str) -> Layout:
        """The layout that an index gives. CorruptionError where a frame's documents do not lie together."""
        offset = np.asarray(index.field_offset)[:, column].astype(np.int64)
        size = np.asarray(index.field_size)[:, column].astype(np.int64)
        bounds = np.asarray(index.frame_first).astype(np.int64)
        ends = offset + size
        apart = ends[:-1] != offset[1:]
        apart[bounds[1:-1] - 1] = False
        if (size < 0).any() or (size % itemsize).any() or apart.any():
            raise CorruptionError(f"{where}: the documents of a frame do not lie together; repack it")
        total = np.zeros(len(size) + 1, np.int64)
        np.cumsum(size // itemsize, out=total[1:])
        start = total[bounds]
        first = np.minimum(-(-start // seq_len), blocks(int(start[-1]), seq_len))
        return cls(offset[bounds[:-1]], start, first)


class Slabs:
    """Memory for batches, used again as soon as no batch refers to it any more."""

    class _Owner(np.ndarray):
        """An array that numpy keeps as the base of its views, so that its end can be seen."""

    def __init__(self, idle: int = 8) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._idle = idle

    def take(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes, their content undefined."""
        raw = None
        while self._free and (raw is None or len(raw) < size):
            raw = self._free.pop()  # smaller ones are of the first, short units: let them go
        if raw is None or len(raw) < size:
            raw = np.empty(size, np.uint8)
        owner = raw.view(self._Owner)
        weakref.finalize(owner, self._give_back, raw).atexit = False
        return np.asarray(owner[:size])

    def _give_back(self, raw: NDArray[np.uint8]) -> None:
        if len(self._free) < self._idle:
            self._free.append(raw)


class TokenSource:
    """The frames of a token dataset as buffers, each followed by the tokens that come after it.

    A block may begin in one frame and end in the next. So that a block is one run of memory, the
    first `seq_len` tokens that follow a frame are put behind it; only the part of the next frame
    that holds them is decompressed.
    """

    def __init__(self, reader: DatasetReader, column: int, dtype: np.dtype[Any], seq_len: int) -> None:
        self.reader, self.dtype, self.seq_len = reader, dtype, seq_len
        self._column = column
        self._layouts: dict[int, Layout] = {}
        self._decompressor = Decompressor()
        self._prefixes: OrderedDict[FrameId, NDArray[np.uint8]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self.slabs = Slabs()

    def layout(self, shard: int) -> Layout:
        """The layout of a shard; reads its index."""
        found = self._layouts.get(shard)
        if found is None:
            index, where = self.reader.index(shard), self.reader.shard_name(shard)
            found = Layout.of(index, self._column, self.dtype.itemsize, self.seq_len, where)
            expected = self.reader.manifest.shards[shard].tokens
            if int(found.start[-1]) != expected:
                raise CorruptionError(
                    f"{where}: {found.start[-1]} tokens by its index, {expected} by the manifest"
                )
            self._layouts[shard] = found
        return found

    def name(self, shard: int, frame: int) -> str:
        """A frame, for messages."""
        return f"{self.reader.shard_name(shard)}, frame {frame}"

    def in_place(self, shard: int) -> memoryview | None:
        """The bytes of a shard that can be gathered from as they are: local and not compressed."""
        if self.reader.manifest.shards[shard].codec != "none":
            return None
        return self.reader.mapped(shard)

    def fetch(self, shard: int, frame: int) -> Buffer:
        """The raw bytes of a frame, the tokens that follow behind those of the frame."""
        layout, itemsize = self.layout(shard), self.dtype.itemsize
        raw_size = int(self.reader.index(shard).frame_raw_size[frame])
        room = self.seq_len * itemsize
        if self.reader.manifest.shards[shard].codec == "zstd":
            stored = self.reader.stored_frame(shard, frame)
            buffer = self._decompressor.frame(stored, raw_size, self.name(shard, frame), room)
        else:
            buffer = self._decompressor.buffer(raw_size + room)
            buffer[:raw_size] = np.frombuffer(self.reader.frame(shard, frame), np.uint8)
        begin = int(layout.data[frame])
        end = begin + int(layout.start[frame + 1] - layout.start[frame]) * itemsize
        self._keep(shard, frame, buffer[begin : min(end, begin + room)].copy())
        following = frame + 1
        while room and following < len(layout.data):
            some = self._prefix(shard, following)[:room]
            buffer[end : end + len(some)] = some
            end, room, following = end + len(some), room - len(some), following + 1
        return buffer

    def recycle(self, buffer: Buffer) -> None:
        """Take back the buffer of a frame."""
        self._decompressor.give_back(buffer)

    def _prefix(self, shard: int, frame: int) -> NDArray[np.uint8]:
        """The first `seq_len` tokens of a frame, as bytes; fewer where it holds fewer."""
        with self._lock:
            found = self._prefixes.get((shard, frame))
        if found is not None:
            return found
        layout, itemsize = self.layout(shard), self.dtype.itemsize
        begin = int(layout.data[frame])
        count = min(self.seq_len, int(layout.start[frame + 1] - layout.start[frame]))
        if self.reader.manifest.shards[shard].codec == "zstd":
            start = bytearray(begin + count * itemsize)
            stored = self.reader.stored_frame(shard, frame)
            self._decompressor.start_of(stored, memoryview(start), self.name(shard, frame))
            found = np.frombuffer(start, np.uint8)[begin:]
        else:
            raw = self.reader.frame(shard, frame)
            found = np.frombuffer(raw, np.uint8)[begin : begin + count * itemsize].copy()
        self._keep(shard, frame, found)
        return found

    def _keep(self, shard: int, frame: int, prefix: NDArray[np.uint8]) -> None:
        with self._lock:
            before = self._prefixes.pop((shard, frame), None)
            self._held += prefix.nbytes - (0 if before is None else before.nbytes)
            self._prefixes[shard, frame] = prefix
            while self._held > _PREFIXES:
                self._held -= self._prefixes.popitem(last=False)[1].nbytes


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
        self._order = np.argsort(region, kind="stable")
        self._ids, self._starts, counts = np.unique(
            region[self._order], return_index=True, return_counts=True
        )
        self.needs: list[Need] = []
        for number, count in zip(self._ids.tolist(), counts.tolist(), strict=True):
            need = plan.needs[number]
            if need is not None:
                self.needs.append(need._replace(reads=count))
        self.direct = direct and not self.needs

    def prepare(self) -> None:
        """Verify what `build_direct` copies from; the pages are then in memory, too."""
        plan = self._plan
        bounds = [*self._starts.tolist(), self._rows]
        for number, begin, end in zip(self._ids.tolist(), bounds, bounds[1:], strict=False):
            self._verified(plan.regions[number][0], plan.frame[self._order[begin:end] + self._begin])

    def build_direct(self) -> Iterable[NDArray[Any]]:
        """The arrays of `build`, each made when it is asked for."""
        plan, length = self._plan, self._plan.source.seq_len + 1
        dtype = plan.source.dtype
        # Of the same size: read as the wanted type, so that a copy is a memcpy.
        kind = self._out if dtype.itemsize == self._out.itemsize else dtype
        maps: dict[int, NDArray[Any]] = {}
        for number in self._ids.tolist():
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

    def build(self, frames: Mapping[FrameId, Buffer]) -> Iterable[NDArray[Any]]:
        """One array [n, seq_len + 1] of the batches one after another, then cut into them."""
        length = self._plan.source.seq_len + 1
        slab = self._plan.source.slabs.take(self._rows * length * self._out.itemsize)
        table = slab.view(self._out).reshape(self._rows, length)
        self.fill(table, np.arange(self._rows), frames)
        at = 0
        for size in self.sizes:
            yield table[at : at + size]
            at += size

    def fill(self, table: NDArray[Any], target: Ints, frames: Mapping[FrameId, Buffer]) -> None:
        """Write row i of the unit to table[target[i]]."""
        plan = self._plan
        bounds = [*self._starts.tolist(), self._rows]
        for number, begin, end in zip(self._ids.tolist(), bounds, bounds[1:], strict=False):
            shard, frame = plan.regions[number]
            rows = self._order[begin:end]
            planned = rows + self._begin
            if frame >= 0:
                self._gather(table, target[rows], frames[shard, frame], plan.at[planned])
                continue
            raw = self._verified(shard, plan.frame[planned])
            whole = plan.whole[planned]
            if whole.all():
                self._gather(table, target[rows], raw, plan.at[planned])
                continue
            self._gather(table, target[rows[whole]], raw, plan.at[planned[whole]])
            for row, token in zip(
                target[rows[~whole]].tolist(), plan.token[planned[~whole]].tolist(), strict=True
            ):
                self._across(table[row], shard, token)

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
