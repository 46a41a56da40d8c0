"""Token shards as frames: where their tokens and blocks lie, and the buffers that hold them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.format.index import ShardIndex
from shardstream.read.decompress import Buffer, Decompressor
from shardstream.read.prefetch import FrameId
from shardstream.read.reader import DatasetReader
from shardstream.read.slabs import Slabs

__all__ = ["Layout", "TokenSource", "blocks"]

Ints = NDArray[np.int64]
_PREFIXES = 64 << 20  # bytes of the beginnings of frames that are kept


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
        return self.reader.frame_name(shard, frame)

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
        if self._decompresses(shard):
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

    def _decompresses(self, shard: int) -> bool:
        """Whether frames come as zstd, not decompressed from a cache."""
        return self.reader.manifest.shards[shard].codec == "zstd" and not self.reader.kept.raw

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
        if self._decompresses(shard):
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
