"""Samples to sized shards, each with its index, put into a store."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from shardstream.errors import SourceError
from shardstream.format import frames
from shardstream.format.manifest import ShardInfo
from shardstream.format.names import check_field, check_key
from shardstream.format.rows import index_bytes
from shardstream.format.tar import BLOCK, TRAILER, member_header, padding
from shardstream.storage.remote import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SUFFIX = {"zstd": ".tar.zst", "none": ".tar"}


@dataclass(frozen=True)
class Layout:
    """How shards are cut and compressed. Sizes in bytes of samples, before compression."""

    codec: str = "zstd"
    level: int = 3
    frame_size: int = 1 << 20
    shard_size: int = 64 << 20


class _Shard:
    """The rows of the shard being written."""

    def __init__(self) -> None:
        self.parts: list[bytes | bytearray | memoryview] = []
        self.stored = 0
        self.raw = 0
        self.frames: list[tuple[int, int, int, int, int, int]] = []
        self.seek: list[tuple[int, int, bytes]] = []
        self.columns: dict[str, int] = {}
        self.cells: list[tuple[int, int, int, int]] = []  # sample, column, offset, size
        self.keys: list[bytes] = []
        self.seen: set[str] = set()
        self.payload = 0


class SampleWriter:
    """Writes samples into the shards of one task, `shard-<number>` and `shard-<number>-<k>`.

    A shard is kept in memory until it is complete, then put as a whole: nobody sees half of one.
    """

    def __init__(self, store: Store, number: int, layout: Layout) -> None:
        self._store = store
        self._number = number
        self._layout = layout
        self._compress = frames.compressor(layout.codec, layout.level)
        self._shard = _Shard()
        # One buffer for all frames: fresh memory for each would cost a page fault per 4 KiB.
        self._frame = io.BytesIO()
        self._used = 0
        self._first = 0
        # A slice of the input is one shard: its last line may pass the size without opening another.
        self._limit = layout.shard_size + layout.shard_size // 8
        self.shards: list[ShardInfo] = []

    def add(self, key: str, fields: dict[str, bytes]) -> None:
        """Add one sample. SourceError if its names cannot be stored or its key is taken."""
        shard = self._shard
        check_key(key)
        if key in shard.seen:
            raise SourceError(f"the key {key!r} occurs twice")
        if not fields:
            raise SourceError(f"sample {key!r} has no field")
        parts: list[bytes] = []
        cells: list[tuple[str, int, int]] = []
        total = payload = 0
        for name, data in fields.items():
            size = len(data)
            header = member_header(f"{key}.{check_field(name)}", size)
            zeros = padding(size)
            parts += (header, data, zeros)
            cells.append((name, total + len(header), size))
            total += len(header) + size + len(zeros)
            payload += size
        if self._used and self._used + total > self._layout.frame_size:
            self._end_frame()
            if shard.payload >= self._limit:
                self._end_shard()
                shard = self._shard
        row, columns = len(shard.keys), shard.columns
        for name, at, size in cells:
            shard.cells.append((row, columns.setdefault(name, len(columns)), self._used + at, size))
        self._frame.writelines(parts)
        self._used += total
        shard.seen.add(key)
        shard.keys.append(key.encode())
        shard.payload += payload

    def close(self) -> list[ShardInfo]:
        """Put the last shard; returns all of them."""
        self._end_frame()
        self._end_shard()
        return self.shards

    def _end_frame(self) -> None:
        if self._used:
            with self._frame.getbuffer() as buffer:
                self._put_frame(buffer[: self._used], self._first)
                kept = len(buffer) <= 2 * self._layout.frame_size
            if kept:
                self._frame.seek(0)
            else:  # give back what a huge sample took
                self._frame = io.BytesIO()
            self._first = len(self._shard.keys)
            self._used = 0

    def _put_frame(self, raw: bytes | memoryview, first: int, listed: bool = True) -> None:
        shard = self._shard
        stored = self._compress(raw)
        if listed:
            shard.frames.append(
                (shard.stored, len(stored), shard.raw, len(raw), first, frames.checksum(stored))
            )
        shard.seek.append((len(stored), len(raw), bytes(stored[-4:])))
        shard.parts.append(stored)
        shard.stored += len(stored)
        shard.raw += len(raw)

    def _end_shard(self) -> None:
        shard = self._shard
        if not shard.keys:
            return
        self._put_frame(TRAILER, len(shard.keys), listed=False)
        if self._layout.codec == "zstd":
            shard.parts.append(frames.seek_table(shard.seek))
        digest = xxhash.xxh3_128()
        for part in shard.parts:
            digest.update(part)
        index = index_bytes(shard.frames, shard.cells, shard.keys, len(shard.columns))
        stem = f"shard-{self._number:06d}" + (f"-{len(self.shards)}" if self.shards else "")
        name = stem + SUFFIX[self._layout.codec]
        # The index first: a shard that is there has its index beside it.
        self._store.write(f"{stem}.index", index)
        self._store.write(name, *shard.parts)
        self.shards.append(
            ShardInfo(
                url=name,
                codec="zstd" if self._layout.codec == "zstd" else "none",
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
            )
        )
        self._shard = _Shard()
        self._first = 0

    def _tokens(self, shard: _Shard) -> int:
        return 0


class TokenWriter(SampleWriter):
    """Writes documents of tokens: the documents of a frame lie together in one tar member.

    So the tokens of a frame are one array. Keys and document bounds are in the index alone.
    """

    FIELD = "tokens"

    def __init__(self, store: Store, number: int, layout: Layout, dtype: np.dtype[np.generic]) -> None:
        super().__init__(store, number, layout)
        self._dtype = dtype.newbyteorder("<")
        self._documents: list[bytes] = []
        self._held = 0

    def add_tokens(self, key: str, tokens: npt.NDArray[np.generic]) -> None:
        """Add one document, an array of the dataset's dtype."""
        shard = self._shard
        check_key(key)
        if key in shard.seen:
            raise SourceError(f"the key {key!r} occurs twice")
        data = tokens.astype(self._dtype, copy=False).tobytes()
        if self._documents and self._held + len(data) > self._layout.frame_size:
            self._end_frame()
            if shard.payload >= self._limit:
                self._end_shard()
                shard = self._shard
        column = shard.columns.setdefault(self.FIELD, 0)
        shard.cells.append((len(shard.keys), column, BLOCK + self._held, len(data)))
        shard.seen.add(key)
        shard.keys.append(key.encode())
        self._documents.append(data)
        self._held += len(data)
        shard.payload += len(data)

    def _end_frame(self) -> None:
        if not self._documents:
            return
        stem = f"{self._number:06d}-{len(self.shards)}-{len(self._shard.frames):06d}"
        header = member_header(f"{stem}.{self.FIELD}", self._held)
        if len(header) != BLOCK:  # a frame of 8 GiB: its header needs a pax record
            shift = len(header) - BLOCK
            cells = self._shard.cells
            count = len(self._documents)
            cells[-count:] = [(row, column, at + shift, size) for row, column, at, size in cells[-count:]]
        raw = b"".join((header, *self._documents, padding(self._held)))
        self._put_frame(raw, self._first)
        self._first = len(self._shard.keys)
        self._documents, self._held = [], 0

    def _tokens(self, shard: _Shard) -> int:
        return sum(size for _, _, _, size in shard.cells) // self._dtype.itemsize
