"""Token shards as frames: the buffers that hold them, and how they are cut into blocks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.read.decompress import Buffer, Decompressor
from shardstream.read.prefetch import FrameId
from shardstream.read.reader import DatasetReader
from shardstream.read.slabs import Slabs
from shardstream.read.token_blocks import BlockOptions, Blocks, Layout, cut

__all__ = ["TokenSource"]

_PREFIXES = 64 << 20  # bytes of the beginnings of frames that are kept
_BLOCKS = 256 << 20  # bytes of how shards are cut into blocks


class TokenSource:
    """The frames of a token dataset as buffers, each followed by the tokens that come after it.

    A block may begin in one frame and end in the next. So that a block is one run of memory, the
    first `seq_len` tokens that follow a frame are put behind it; only the part of the next frame
    that holds them is decompressed. Blocks of whole documents need none of that.
    """

    def __init__(
        self, reader: DatasetReader, column: int, dtype: np.dtype[Any], options: BlockOptions, pad_id: int
    ) -> None:
        self.reader, self.dtype, self.options = reader, dtype, options
        self.padding = np.full(options.seq_len + 1, pad_id, dtype).view(np.uint8)
        self.slabs = Slabs()
        self._column = column
        self._room = options.seq_len if options.pack is None else 0
        self._decompressor = Decompressor()
        self._blocks: OrderedDict[int, Blocks] = OrderedDict()
        self._blocks_held = 0
        self._prefixes: OrderedDict[FrameId, NDArray[np.uint8]] = OrderedDict()
        self._prefixes_held = 0
        self._lock = threading.Lock()

    def blocks(self, shard: int) -> Blocks:
        """How a shard is cut into blocks; reads its index."""
        with self._lock:
            found = self._blocks.get(shard)
            if found is not None:
                self._blocks.move_to_end(shard)
                return found
        index, where = self.reader.index(shard), self.reader.shard_name(shard)
        layout = Layout.of(index, self._column, self.dtype.itemsize, where)
        expected = self.reader.manifest.shards[shard].tokens
        if layout.tokens != expected:
            raise CorruptionError(f"{where}: {layout.tokens} tokens by its index, {expected} by the manifest")
        found = cut(layout, self.options)
        with self._lock:
            if shard not in self._blocks:
                self._blocks[shard] = found
                self._blocks_held += found.nbytes
            while self._blocks_held > _BLOCKS and len(self._blocks) > 1:
                self._blocks_held -= self._blocks.popitem(last=False)[1].nbytes
        return found

    def expect(self, frames: Sequence[FrameId]) -> None:
        """These frames are going to be fetched, in this order."""
        if self.reader.all_local:
            return
        # A block may end in the frame after its own.
        counts = [shard.frames for shard in self.reader.manifest.shards]
        pairs = (((shard, frame), (shard, frame + 1)) for shard, frame in frames)
        wanted = dict.fromkeys(frame for pair in pairs for frame in pair)
        self.reader.expect([(shard, frame) for shard, frame in wanted if frame < counts[shard]])

    def counters(self) -> dict[str, Any]:
        """Bytes by tier, where they do not all come from local files."""
        return {} if self.reader.all_local else self.reader.counters

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
        layout, itemsize = self.blocks(shard).layout, self.dtype.itemsize
        raw_size = int(self.reader.index(shard).frame_raw_size[frame])
        room = self._room * itemsize
        if self._decompresses(shard):
            stored = self.reader.stored_frame(shard, frame)
            buffer = self._decompressor.frame(stored, raw_size, self.name(shard, frame), room)
        else:
            buffer = self._decompressor.buffer(raw_size + room)
            buffer[:raw_size] = np.frombuffer(self.reader.frame(shard, frame), np.uint8)
        if room:
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
        layout, itemsize = self.blocks(shard).layout, self.dtype.itemsize
        begin = int(layout.data[frame])
        count = min(self._room, int(layout.start[frame + 1] - layout.start[frame]))
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
            self._prefixes_held += prefix.nbytes - (0 if before is None else before.nbytes)
            self._prefixes[shard, frame] = prefix
            while self._prefixes_held > _PREFIXES:
                self._prefixes_held -= self._prefixes.popitem(last=False)[1].nbytes
