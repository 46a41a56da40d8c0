"""Samples to sized shards, each with its index, put into a store."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from shardstream.errors import SourceError
from shardstream.format import frames
from shardstream.format.cells import Cells
from shardstream.format.columns import ColumnValue, encode
from shardstream.format.manifest import ShardInfo
from shardstream.format.names import check_field, check_key
from shardstream.format.rows import index_parts, is_sparse
from shardstream.format.tar import BLOCK, TRAILER, header_parts, member_header, padding
from shardstream.packing.columns import check_values
from shardstream.packing.layout import Codec, Layout
from shardstream.packing.tally import Tally
from shardstream.storage.store import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_NONE: Mapping[str, ColumnValue] = MappingProxyType({})
_SUFFIX: dict[Codec, str] = {"zstd": ".tar.zst", "none": ".tar"}
_HEADER_PARTS = 3  # of a usual header, which has BLOCK bytes


class _Fields(NamedTuple):
    """What is the same for all samples of a shard that have the same fields.

    Args:
        ends: The end of the name of each field's member, in UTF-8: a dot and the field.
        columns: The column of each field.
    """

    ends: tuple[bytes, ...]
    columns: tuple[int, ...]


class _Shard:
    """The shard that is being written: its bytes, and the rows of its index."""

    def __init__(self) -> None:
        self.parts: list[bytes | bytearray | memoryview] = []
        self.stored = 0
        self.raw = 0
        self.frames: list[tuple[int, int, int, int, int, int]] = []
        self.seek: list[tuple[int, int, bytes]] = []
        self.columns: dict[str, int] = {}
        self.fields: dict[tuple[str, ...], _Fields] = {}
        self.cells = Cells()
        self.keys: list[bytes] = []
        self.seen: set[str] = set()
        self.values: dict[str, list[ColumnValue | None]] = {}  # of the columns; the last may be missing
        self.payload = 0
        self.begun = 0  # frames of tokens so far

    def add_key(self, key: str, raw: bytes, columns: Mapping[str, ColumnValue]) -> None:
        """Add the key of a sample and its values; the sample before has all its cells."""
        for name, value in columns.items():
            known = self.values.setdefault(name, [])
            known += [None] * (len(self.keys) - len(known))
            known.append(value)
        self.seen.add(key)
        self.keys.append(raw)

    def named(self, names: tuple[str, ...]) -> _Fields:
        """What these fields have, which get columns. Raises SourceError if one has no good name."""
        ends = tuple(f".{check_field(name)}".encode() for name in names)
        known = self.columns
        return self.fields.setdefault(
            names, _Fields(ends, tuple(known.setdefault(name, len(known)) for name in names))
        )


class SampleWriter:
    """Writes samples into the shards of one task, `shard-<number>` and `shard-<number>-<k>`.

    A shard stays in memory until it is complete. It is then written as a whole, so that half a shard is never
    seen.

    Args:
        store: Where the shards are written.
        number: The number of the task's first shard.
        layout: How shards are cut and compressed.
        first: How many shards of the task came before, by another writer.
    """

    def __init__(self, store: Store, number: int, layout: Layout, first: int = 0) -> None:
        self._store = store
        self._number = number
        self._layout = layout
        self._before = first
        self._compress = frames.compressor(layout.codec, layout.level)
        self._shard = _Shard()
        self._parts: list[bytes | memoryview] = []  # of the open frame
        self._used = 0
        self._first = 0
        # A slice of the input becomes one shard. Its last line may exceed the size without a second shard.
        self._limit = layout.shard_size + layout.shard_size // 8
        self.shards: list[ShardInfo] = []
        self.sample_bytes = 0  # that the fields of all samples hold
        self.stored = Tally()  # of the samples in frames, as a reader will find them

    def add(self, key: str, fields: dict[str, bytes], columns: Mapping[str, ColumnValue] = _NONE) -> None:
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
        names = tuple(fields)
        if not names:
            raise SourceError(f"sample {key!r} has no field")
        shard = self._shard
        known = shard.fields.get(names)
        ends = known.ends if known else tuple(f".{check_field(name)}".encode() for name in names)
        parts: list[bytes | memoryview] = []
        offsets, sizes = [], []
        total = payload = 0
        for end, data in zip(ends, fields.values(), strict=True):
            size = len(data)
            header = header_parts(raw_key + end, size)
            begin = total + (BLOCK if len(header) == _HEADER_PARTS else sum(map(len, header)))
            parts += (*header, data, padding(size))
            offsets.append(begin)
            sizes.append(size)
            total = begin + size + -size % BLOCK
            payload += size
        if self._used and self._used + total > self._layout.frame_size:
            self._end_frame()
            if shard.payload >= self._limit:
                self._end_shard()
                shard = self._shard
            known = shard.fields.get(names)
        cells, used = shard.cells, self._used
        cells.begin(len(shard.keys), (known or shard.named(names)).columns)
        for begin, size in zip(offsets, sizes, strict=True):
            cells.offsets.append(used + begin)
            cells.sizes.append(size)
        self._parts += parts
        self._used += total
        shard.add_key(key, raw_key, columns)
        shard.payload += payload

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
        if self._used:
            parts, self._parts = self._parts, []
            self._put_frame(parts[0] if len(parts) == 1 else b"".join(parts), self._first)
            self._first = len(self._shard.keys)
            self._used = 0

    def _put_frame(self, raw: bytes | memoryview, first: int, listed: bool = True) -> None:
        if listed:
            shard = self._shard
            self.stored.add_frame(raw, shard.keys[first:], tuple(shard.columns), shard.cells, first)
        self._store_frame(self._compress(raw), len(raw), first, listed)

    def _store_frame(
        self, stored: bytes | bytearray | memoryview, size: int, first: int, listed: bool
    ) -> None:
        shard = self._shard
        if listed:
            shard.frames.append((shard.stored, len(stored), shard.raw, size, first, frames.checksum(stored)))
        shard.seek.append((len(stored), size, bytes(stored[-4:])))
        shard.parts.append(stored)
        shard.stored += len(stored)
        shard.raw += size

    def _end_shard(self) -> None:
        shard = self._shard
        if not shard.keys:
            return
        self._put_frame(TRAILER, len(shard.keys), listed=False)
        if self._layout.codec == "zstd":
            shard.parts.append(frames.seek_table(shard.seek))
        self.sample_bytes += shard.payload
        digest = xxhash.xxh3_128()
        for part in shard.parts:
            digest.update(part)
        for values in shard.values.values():
            values += [None] * (len(shard.keys) - len(values))
        columns, tensors = encode(shard.values)
        head, tail = index_parts(shard.frames, shard.cells, shard.keys, len(shard.columns), tensors)
        index = head + tail
        count = self._before + len(self.shards)
        stem = f"shard-{self._number:06d}" + (f"-{count}" if count else "")
        name = stem + _SUFFIX[self._layout.codec]
        # The index first, so that there is never a shard without its index.
        self._store.write(f"{stem}.index", index)
        self._store.write(name, *shard.parts)
        self.shards.append(
            ShardInfo(
                url=name,
                codec=self._layout.codec,
                fields=tuple(shard.columns),
                bytes=sum(map(len, shard.parts)),
                raw_bytes=shard.raw,
                samples=len(shard.keys),
                tokens=self._tokens(shard),
                frames=len(shard.frames),
                checksum=digest.hexdigest(),
                index_url=f"{stem}.index",
                index_bytes=len(index),
                index_checksum=xxhash.xxh3_128_hexdigest(index),
                columns=tuple(columns),
                index_head=len(head) if columns else 0,
                index_head_checksum=xxhash.xxh3_128_hexdigest(head) if columns else "",
                sparse=is_sparse(len(shard.keys), len(shard.columns), len(shard.cells)),
            )
        )
        self._shard = _Shard()
        self._first = 0

    def _tokens(self, shard: _Shard) -> int:
        return 0


class TokenWriter(SampleWriter):
    """Writes documents of tokens. All documents of a frame are one tar member.

    So the tokens of a frame are one array. The keys and bounds of documents are only in the index.

    Args:
        store, number, layout, first: See `SampleWriter`.
        dtype: The dtype of the tokens.
    """

    FIELD = "tokens"

    def __init__(
        self, store: Store, number: int, layout: Layout, dtype: np.dtype[np.generic], first: int = 0
    ) -> None:
        super().__init__(store, number, layout, first)
        self._dtype = dtype.newbyteorder("<")
        self._documents: list[bytes] = []  # of the open frame
        self._open_bytes = 0

    def add_tokens(
        self, key: str, tokens: npt.NDArray[np.generic], columns: Mapping[str, ColumnValue] = _NONE
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
        shard.add_key(key, raw_key, columns)
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
        self._put_frame(raw, self._first)
        self._first = len(self._shard.keys)
        self._shard.begun += 1
        self._documents, self._open_bytes = [], 0

    def _tokens(self, shard: _Shard) -> int:
        return sum(shard.cells.sizes) // self._dtype.itemsize
