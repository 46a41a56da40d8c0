"""Samples to sized shards, each with its index, put into a store."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from shardstream.errors import SourceError
from shardstream.format import frames
from shardstream.format.columns import NO_COLUMNS, ColumnValue
from shardstream.format.manifest import ShardInfo
from shardstream.format.members import MAX_SIZE, odd_size
from shardstream.format.names import check_key
from shardstream.format.tar import BLOCK, TRAILER, member_header, padding
from shardstream.packing.columns import check_values
from shardstream.packing.layout import Layout
from shardstream.packing.open_frame import OpenFrame, fields_of
from shardstream.packing.open_shard import OpenShard, Output
from shardstream.packing.shard_names import shard_stem
from shardstream.packing.tally import Tally

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from shardstream.packing.sources.block import Block


class SampleWriter:
    """Writes samples into the shards of one task, `shard-<number>` and `shard-<number>-<k>`.

    A shard stays in memory until it is complete. It is then written as a whole, so that half a shard is never
    seen.

    Args:
        store: Where the shards are written.
        number: The number of the task's first shard.
        layout: How shards are cut and compressed.
        first: How many shards of the task came before, by another writer.
        tag: Stands in the names of the shards behind their numbers.
    """

    def __init__(self, store: Output, number: int, layout: Layout, first: int = 0, tag: str = "") -> None:
        self._store = store
        self._tag = tag
        self._number = number
        self._layout = layout
        self._before = first
        self._compress = frames.compressor(layout.codec, layout.level)
        # A slice of the input becomes one shard. Its last line may exceed the size without a second shard.
        self._limit = layout.shard_size + layout.shard_size // 8
        self.shards: list[ShardInfo] = []
        self.sample_bytes = 0  # that the fields of all samples hold
        self.stored = Tally()  # of the samples in frames, as a reader will find them
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._shard = OpenShard()
        self._begin_frame()

    def _begin_frame(self) -> None:
        shard = self._shard
        self._frame = OpenFrame(shard.cells, shard.columns, len(shard.keys))

    def add(
        self, key: str, fields: dict[str, bytes], columns: Mapping[str, ColumnValue] = NO_COLUMNS
    ) -> None:
        """Add one sample.

        Args:
            key: The key of the sample.
            fields: The bytes of each field, by name.
            columns: The values that the index keeps, by name.

        Raises:
            SourceError: A name or a value of a column cannot be stored, the key occurs twice, or there is no
                field.
        """
        raw_key = self._checked(key, columns)
        if not fields:
            raise SourceError(f"sample {key!r} has no field")
        known, data = fields_of(tuple(fields)), fields.values()
        sizes = list(map(len, data))
        payload = sum(sizes)
        # Of each field its header, its data and the zeros up to a whole block.
        total = sum([(size + 2 * BLOCK - 1) & -BLOCK for size in sizes])
        usual = len(raw_key) <= known.longest and payload <= MAX_SIZE and raw_key.isascii()
        if not usual:
            total = odd_size(raw_key, known.ends, sizes)
        if self._frame.size + total > self._layout.frame_size:
            self._make_room(total)
        if usual:
            self._frame.add(raw_key, known, data, sizes, total)
        else:
            self._frame.add_odd(raw_key, known, data)
        shard = self._shard
        if columns:
            shard.add_values(columns)
        shard.seen.add(key)
        shard.keys.append(raw_key)
        shard.payload += payload

    def add_block(self, block: Block) -> bool:
        """Add samples that came together.

        Returns:
            False if a key occurs twice, so that they have to be added one by one. Nothing is added then.
        """
        keys = block.keys
        if len(set(keys)) < len(keys) or not self._shard.seen.isdisjoint(keys):
            return False
        layout, fields = block.lay_out(), fields_of(block.names)
        ends, begin = layout.ends, 0
        while begin < len(keys):
            start = ends[begin - 1] if begin else 0
            self._make_room(ends[begin] - start)
            room = self._layout.frame_size - self._frame.size
            end = max(begin + 1, bisect.bisect_right(ends, start + room, begin))
            self._shard.payload += layout.add_to(self._frame, fields, begin, end)
            values = {name: column[begin:end] for name, column in block.columns.items()}
            self._shard.add_keys(keys[begin:end], values)
            begin = end
        return True

    def _make_room(self, total: int) -> None:
        """End the open frame if a sample of so many bytes does not fit; then the shard, if it is full."""
        size = self._frame.size
        if size and size + total > self._layout.frame_size:
            self._end_frame()
            if self._shard.payload >= self._limit:
                self._end_shard()

    def _checked(self, key: str, columns: Mapping[str, ColumnValue]) -> bytes:
        """The key in UTF-8. Raises SourceError if it cannot be stored, or one of the values."""
        check_key(key)
        if columns:
            check_values(columns)
        if key in self._shard.seen:
            raise SourceError(f"the key {key!r} occurs twice")
        return key.encode()

    def close(self) -> list[ShardInfo]:
        """Write the last shard; returns all shards."""
        self._end_frame()
        self._end_shard()
        return self.shards

    def _end_frame(self) -> None:
        if self._frame.size:
            self._put_frame(self._frame.end(), self._frame.first)
            self._begin_frame()

    def _put_frame(self, raw: bytes | memoryview, first: int, listed: bool = True) -> None:
        if listed:
            shard = self._shard
            self.stored.add_frame(raw, shard.keys[first:], tuple(shard.columns), shard.cells, first)
        self._shard.store_frame(self._compress(raw), len(raw), first, listed)

    def _end_shard(self) -> None:
        shard = self._shard
        if not shard.keys:
            return
        self._put_frame(TRAILER, len(shard.keys), listed=False)
        self.sample_bytes += shard.payload
        count = self._before + len(self.shards)
        stem = shard_stem(self._number, count, self._tag)
        self.shards.append(shard.write(self._store, stem, self._layout.codec, self._tokens(shard)))
        self._begin_shard()

    def _tokens(self, shard: OpenShard) -> int:
        return 0


class TokenWriter(SampleWriter):
    """Writes documents of tokens. All documents of a frame are one tar member.

    So the tokens of a frame are one array. The keys and bounds of documents are only in the index.

    Args:
        store, number, layout, first, tag: See `SampleWriter`.
        dtype: The dtype of the tokens.
    """

    FIELD = "tokens"

    def __init__(
        self,
        store: Output,
        number: int,
        layout: Layout,
        dtype: np.dtype[np.generic],
        first: int = 0,
        tag: str = "",
    ) -> None:
        super().__init__(store, number, layout, first, tag)
        self._dtype = dtype.newbyteorder("<")
        self._documents: list[bytes] = []  # of the open frame
        self._open_bytes = 0

    def add_tokens(
        self, key: str, tokens: npt.NDArray[np.generic], columns: Mapping[str, ColumnValue] = NO_COLUMNS
    ) -> None:
        """Add one document.

        Args:
            key: The key of the document.
            tokens: Its token ids, [n].
            columns: The values that the index keeps, by name.

        Raises:
            SourceError: The key or a value of a column cannot be stored, or the key occurs twice.
        """
        raw_key, shard = self._checked(key, columns), self._shard
        data = tokens.astype(self._dtype, copy=False).tobytes()
        if self._documents and self._open_bytes + len(data) > self._layout.frame_size:
            self._end_frame()
            if shard.payload >= self._limit:
                self._end_shard()
                shard = self._shard
        shard.columns.setdefault(self.FIELD, 0)
        shard.cells.begin(len(shard.keys), (0,))
        shard.cells.offsets.append(BLOCK + self._open_bytes)
        shard.cells.sizes.append(len(data))
        shard.add_values(columns)
        shard.seen.add(key)
        shard.keys.append(raw_key)
        self._documents.append(data)
        self._open_bytes += len(data)
        shard.payload += len(data)

    def _end_frame(self) -> None:
        if not self._documents:
            return
        count = self._before + len(self.shards)
        stem = f"{self._number:06d}-{count}-{self._shard.begun:06d}"
        header = member_header(f"{stem}.{self.FIELD}", self._open_bytes)
        if len(header) != BLOCK:  # a frame of 8 GiB: its header needs a pax record
            shift = len(header) - BLOCK
            offsets = self._shard.cells.offsets
            for at in range(len(offsets) - len(self._documents), len(offsets)):
                offsets[at] += shift
        raw = b"".join((header, *self._documents, padding(self._open_bytes)))
        self._put_frame(raw, len(self._shard.keys) - len(self._documents))
        self._shard.begun += 1
        self._documents, self._open_bytes = [], 0

    def _tokens(self, shard: OpenShard) -> int:
        return sum(shard.cells.sizes) // self._dtype.itemsize
