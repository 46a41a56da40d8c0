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

__all__ = ["Layout", "Slabs", "TokenSource", "TokenUnit", "blocks"]

Ints = NDArray[np.int64]
_PREFIXES = 64 << 20


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


class TokenUnit:
    """Some consecutive batches of blocks.

    shards, numbers: int64 [n], the shard of each row and its block within it.  out: the dtype of
    the tensors.
    """

    def __init__(
        self, source: TokenSource, shards: Ints, numbers: Ints, sizes: list[int], out: np.dtype[Any]
    ) -> None:
        self._source, self._numbers, self._out = source, numbers, out
        self.sizes = sizes
        self.volume = len(numbers) * (source.seq_len + 1) * out.itemsize
        # Rows of one shard together: what is looked up once per shard must not cost anything per row.
        self._order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[self._order])) + 1
        groups = np.split(self._order, cuts) if len(shards) else []
        self._groups = [(int(shards[rows[0]]), rows) for rows in groups]
        self.needs: list[Need] = []
        self._frames: dict[int, Ints] = {}
        for shard, rows in self._groups:
            if source.in_place(shard) is None:
                self._need(shard, rows)

    def _need(self, shard: int, rows: Ints) -> None:
        layout = self._source.layout(shard)
        frames = np.searchsorted(layout.first, self._numbers[rows], side="right") - 1
        self._frames[shard] = frames
        size = np.asarray(self._source.reader.index(shard).frame_raw_size)
        wanted, counts = np.unique(frames, return_counts=True)
        for frame, count in zip(wanted.tolist(), counts.tolist(), strict=True):
            holds = int(layout.first[frame + 1] - layout.first[frame])
            self.needs.append(Need((shard, frame), int(size[frame]), holds, count))

    def build(self, frames: Mapping[FrameId, Buffer]) -> Iterable[NDArray[Any]]:
        """One array [n, seq_len + 1] of the batches one after another, then cut into them."""
        rows, length = len(self._numbers), self._source.seq_len + 1
        slab = self._source.slabs.take(rows * length * self._out.itemsize)
        table = slab.view(self._out).reshape(rows, length)
        for shard, mine in self._groups:
            if shard in self._frames:
                self._from_frames(table, shard, mine, frames)
            else:
                self._in_place(table, shard, mine)
        at = 0
        for size in self.sizes:
            yield table[at : at + size]
            at += size

    def _from_frames(
        self, table: NDArray[Any], shard: int, rows: Ints, buffers: Mapping[FrameId, Buffer]
    ) -> None:
        layout, itemsize = self._source.layout(shard), self._source.dtype.itemsize
        within = self._frames[shard]
        at = (
            layout.data[within]
            + (self._numbers[rows] * self._source.seq_len - layout.start[within]) * itemsize
        )
        order = np.argsort(within, kind="stable")
        cuts = np.flatnonzero(np.diff(within[order])) + 1
        for some in np.split(order, cuts):
            self._gather(table, rows[some], buffers[shard, int(within[some[0]])], at[some])

    def _in_place(self, table: NDArray[Any], shard: int, rows: Ints) -> None:
        source, reader = self._source, self._source.reader
        layout, itemsize = source.layout(shard), source.dtype.itemsize
        mapped = source.in_place(shard)
        assert mapped is not None
        token = self._numbers[rows] * source.seq_len
        within = np.searchsorted(layout.first, self._numbers[rows], side="right") - 1
        for frame in np.unique(within).tolist():
            reader.stored_frame(shard, frame)  # verified at the first touch
        offset = np.asarray(reader.index(shard).frame_offset).astype(np.int64)
        at = offset[within] + layout.data[within] + (token - layout.start[within]) * itemsize
        whole = token + source.seq_len < layout.start[within + 1]
        self._gather(table, rows[whole], np.frombuffer(mapped, np.uint8), at[whole])
        for row, first in zip(rows[~whole].tolist(), token[~whole].tolist(), strict=True):
            self._across(table[row], shard, first)

    def _across(self, out: NDArray[Any], shard: int, token: int) -> None:
        """One row that begins in one frame and ends in another."""
        source, layout = self._source, self._source.layout(shard)
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
        if not len(rows):
            return
        dtype, length = self._source.dtype, self._source.seq_len + 1
        # A row is one opaque item of a view that has an item at each byte: numpy then copies rows
        # with memcpy, in one call and without the GIL.
        size = length * dtype.itemsize
        items: NDArray[np.void] = np.ndarray(len(raw) - size + 1, f"V{size}", raw, 0, (1,))
        found = items[at]
        if dtype.itemsize == self._out.itemsize:
            table.view(f"V{size}")[:, 0][rows] = found
        else:
            table[rows] = found.view(dtype).reshape(len(rows), length)
