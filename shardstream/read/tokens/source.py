"""The frames of a token dataset as buffers, and how shards are cut into blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.memory import RecentValues
from shardstream.read.buffers import Buffer, BufferPool
from shardstream.read.dataset_blocks import STREAMS
from shardstream.read.decompress import Decompressor
from shardstream.read.engine.frames import FrameId
from shardstream.read.mapped_frames import InPlaceReads
from shardstream.read.reader import DatasetReader
from shardstream.read.tokens.blocks import BlockOptions, Blocks, cut
from shardstream.read.tokens.gather import address, gather_runs
from shardstream.read.tokens.layout import Layout

__all__ = ["TokenSource"]

Ints = NDArray[np.int64]
# Parts of the reader's budget, each with the bytes that are allowed even if the budget is smaller.
_BLOCKS = 3 / 16, 4 << 20
_BEGINNINGS = 1 / 32, 1 << 20


class TokenSource:
    """The frames of a token dataset as buffers, each followed by the tokens of the next frames.

    A block may begin in one frame and end in the next. Its tokens are put behind the first frame, so that a
    block is one run of memory. Only the beginning of the next frame is decompressed for that. Blocks of whole
    documents lie in single frames, and need nothing behind them.

    Args:
        reader: Of the dataset.
        column: The column of the tokens in an index.
        dtype: Of the tokens.
        options: How shards are cut into blocks.
        pad_id: The token that is padding.
        chosen: From a shard to the numbers of the documents that are read, rising, or None for all of them.
            None: all documents of all shards are.

    Attributes:
        padding: A row of padding, as bytes.
        batches: The memory for batches.
        in_place_reads: The frames that were read in mapped files.
    """

    def __init__(
        self,
        reader: DatasetReader,
        column: int,
        dtype: np.dtype[Any],
        options: BlockOptions,
        pad_id: int,
        chosen: Callable[[int], Ints | None] | None = None,
    ) -> None:
        self.reader, self.dtype, self.options = reader, dtype, options
        self.padding = np.full(options.seq_len + 1, pad_id, dtype).view(np.uint8)
        self._pool, self.batches = BufferPool(), BufferPool()  # of frames, and of batches
        self._column, self._chosen = column, chosen or _all
        self._room = options.seq_len if options.pack is None else 0
        self._decompressor = Decompressor(self._pool)
        self.in_place_reads = InPlaceReads(reader)
        # How shards are cut into blocks, and the first tokens of frames.
        self._blocks: RecentValues[int, Blocks] = reader.budget.recent_values(
            "block layouts", attrgetter("nbytes"), *_BLOCKS
        )
        self._beginnings: RecentValues[FrameId, Buffer] = reader.budget.recent_values(
            "beginnings of frames", attrgetter("nbytes"), *_BEGINNINGS
        )

    def blocks(self, shard: int) -> Blocks:
        """How a shard is cut into blocks. Reads the index of the shard.

        Raises:
            CorruptionError: The index does not fit the manifest, or documents do not lie together.
        """
        found = self._blocks.get(shard)
        if found is not None:
            return found
        index, where = self.reader.index(shard), self.reader.shard_name(shard)
        layout = Layout.of(index, self._column, self.dtype.itemsize, where)
        expected = self.reader.manifest.shards[shard].tokens
        if layout.tokens != expected:
            raise CorruptionError(f"{where}: {layout.tokens} tokens by its index, {expected} by the manifest")
        some = self._chosen(shard)
        if some is not None:
            layout = layout.of_documents(index, self._column, some)
        return self._blocks.put(shard, cut(layout, self.options))

    def fetch_ahead(self, frames: Sequence[FrameId]) -> None:
        """Begin to fetch frames, and the frames behind them that their blocks need; see `Source`."""
        if self.reader.all_local:
            return
        wanted: dict[FrameId, None] = {}
        for shard, frame in frames:
            # A block may end in a frame after its own.
            found = self.blocks(shard).read_with(np.array([frame], np.int64)).tolist()
            wanted.update(dict.fromkeys((shard, number) for number in found))
        self.reader.ahead.fetch(list(wanted))

    def counters(self) -> dict[str, Any]:
        """How many bytes came from each tier, by name; empty if all files are local."""
        return {} if self.reader.all_local else self.reader.counters

    def memory(self) -> dict[str, int]:
        """The bytes of the reader's budget in use, by name, and its "limit"."""
        return self.reader.memory

    def limit_idle(self, frames: int, batches: int) -> tuple[int, int]:
        """Limit the memory that waits to be used again; see `Source`."""
        return self._pool.limit_to(frames), self.batches.limit_to(batches)

    def name(self, shard: int, frame: int) -> str:
        """The name of a frame for messages."""
        return self.reader.frame_name(shard, frame)

    def in_place(self, shard: int) -> memoryview | None:
        """The map of a shard whose tokens are read in its file: local, not compressed, whole. Else None."""
        if self.reader.manifest.shards[shard].codec != "none" or self._chosen(shard) is not None:
            return None
        return self.reader.local.mapped(shard)

    def fetch(self, shard: int, frame: int) -> Buffer:
        """The raw bytes of a frame. The tokens of the next frames are behind the tokens of the frame."""
        blocks, itemsize = self.blocks(shard), self.dtype.itemsize
        layout = blocks.layout
        raw_size = int(self.reader.index(shard).frame_raw_size[frame])
        room = self._room * itemsize
        if self._decompresses(shard):
            stored = self.reader.stored_frame(shard, frame)
            buffer = self._decompressor.frame(stored, raw_size, self.name(shard, frame), room)
            self.reader.local.check_again(shard, frame)
        else:
            buffer = self._pool.take(raw_size + room)
            buffer[:raw_size] = np.frombuffer(self.reader.frame(shard, frame), np.uint8)
            self.reader.local.check_again(shard, frame)
        self._join(layout, frame, buffer)
        if room:
            begin = int(layout.data[frame])
            end = begin + int(layout.start[frame + 1] - layout.start[frame]) * itemsize
            self._beginnings.put((shard, frame), buffer[begin : min(end, begin + room)].copy())
            following, left = frame + 1, int(blocks.beyond[frame]) * itemsize
            while left and following < len(layout.data):
                if layout.start[following] == layout.start[following + 1]:
                    following += 1  # no document of it is chosen, or only empty ones
                    continue
                some = self._beginning(shard, following)[:left]
                buffer[end : end + len(some)] = some
                end, left, following = end + len(some), left - len(some), following + 1
        return buffer

    def _join(self, layout: Layout, frame: int, buffer: Buffer) -> None:
        """Put the tokens of the chosen documents of a frame together, from where its first document began."""
        itemsize, count = self.dtype.itemsize, int(layout.start[frame + 1] - layout.start[frame])
        runs = layout.runs(frame, count, itemsize)
        if runs is not None:
            begin = int(layout.data[frame])
            found = self._gathered(runs, buffer, frame)
            buffer[begin : begin + found.nbytes] = found.view(np.uint8)

    def _gathered(self, runs: tuple[Ints, Ints], buffer: Buffer, frame: int) -> NDArray[Any]:
        places, sizes = runs
        if int((places + sizes * self.dtype.itemsize).max()) > len(buffer):
            raise CorruptionError(f"{self.reader.url}: a document leaves frame {frame}; repack it")
        return gather_runs(address(buffer) + places, sizes, self.dtype)

    def _decompresses(self, shard: int) -> bool:
        """Whether the frames of a shard have to be decompressed here: not if the cache did so."""
        return self.reader.manifest.shards[shard].codec == "zstd" and not self.reader.blocks.raw

    def keeps(self, shard: int) -> bool:
        """Whether the frames of a shard can be verified apart: not those of one compressed stream."""
        return self.reader.manifest.shards[shard].codec not in STREAMS

    def unchanged(self, frames: Sequence[FrameId]) -> list[FrameId]:
        """Those of these frames whose files are as they were when they were verified; see `Source`."""
        return self.reader.local.unchanged(frames)

    def check_again(self) -> None:
        """Look once more at the mapped files that were read."""
        self.in_place_reads.check_again()

    def recycle(self, buffer: Buffer) -> None:
        """Take back the buffer of a frame."""
        self._pool.give_back(buffer)

    def _beginning(self, shard: int, frame: int) -> Buffer:
        """The first `seq_len` tokens of a frame, as bytes; fewer if the frame holds fewer."""
        found = self._beginnings.get((shard, frame))
        if found is not None:
            return found
        layout, itemsize = self.blocks(shard).layout, self.dtype.itemsize
        begin = int(layout.data[frame])
        count = min(self._room, int(layout.start[frame + 1] - layout.start[frame]))
        runs = layout.runs(frame, count, itemsize)
        end = begin + count * itemsize if runs is None else int(runs[0][-1] + runs[1][-1] * itemsize)
        if self._decompresses(shard):
            start = bytearray(end)
            stored = self.reader.stored_frame(shard, frame)
            self._decompressor.start_of(stored, memoryview(start), self.name(shard, frame))
            self.reader.local.check_again(shard, frame)
            raw = np.frombuffer(start, np.uint8)
        else:
            raw = np.frombuffer(self.reader.frame(shard, frame), np.uint8)
        if runs is not None:
            found = self._gathered(runs, raw, frame).view(np.uint8)[: count * itemsize]
        else:
            found = raw[begin : begin + count * itemsize].copy()
        if not self._decompresses(shard):
            self.reader.local.check_again(shard, frame)
        return self._beginnings.put((shard, frame), found)


def _all(shard: int) -> None:
    """The documents that are read if nothing is said: all."""
