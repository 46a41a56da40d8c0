"""The shard that is being made: its stored frames, and the rows of its index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import xxhash

from shardstream.counters.layout import slot
from shardstream.counters.recorder import add
from shardstream.format import frames
from shardstream.format.cells import Cells
from shardstream.format.columns import ColumnValue, encode
from shardstream.format.manifest import ShardInfo
from shardstream.format.rows import index_parts, is_sparse
from shardstream.packing.layout import Codec

__all__ = ["OpenShard", "Output", "Stored"]

_ROWS, _BYTES, _SHARDS = slot("packed_rows"), slot("packed_bytes"), slot("packed_shards")

Stored = bytes | bytearray | memoryview
_SUFFIX: dict[Codec, str] = {"zstd": ".tar.zst", "none": ".tar"}


class Output(Protocol):
    """Where a shard goes: a store, or what stands before it."""

    def write(self, path: str, *parts: Stored) -> None:
        """Put an object of these parts, as `Store.write` does."""
        ...


class OpenShard:
    """A shard in memory. It is written as a whole, so that half a shard is never seen.

    Attributes:
        columns: The number of each field, by name.
        cells: Where the fields of the samples lie.
        keys: The key of each sample, in UTF-8.
        seen: The same keys.
        payload: The bytes of the fields of all samples.
        begun: How many frames of tokens there are.
        values: Of each column that the index keeps, by name: a value for each sample, but for the last ones.
    """

    def __init__(self) -> None:
        self.columns: dict[str, int] = {}
        self.cells = Cells()
        self.keys: list[bytes] = []
        self.seen: set[str] = set()
        self.payload = 0
        self.begun = 0
        self._parts: list[Stored] = []
        self._stored = self._raw = 0  # bytes
        self._frames: list[tuple[int, int, int, int, int, int]] = []
        self._seek: list[tuple[int, int, bytes]] = []
        self.values: dict[str, list[ColumnValue | None]] = {}

    def add_values(self, columns: Mapping[str, ColumnValue]) -> None:
        """Add the values that the index keeps of the next sample, whose key is added after them."""
        for name, value in columns.items():
            known = self.values.setdefault(name, [])
            known += [None] * (len(self.keys) - len(known))
            known.append(value)

    def add_keys(self, keys: Sequence[str], columns: Mapping[str, Sequence[ColumnValue | None]]) -> None:
        """Add the keys of samples, of ASCII, and of each value that the index keeps those of all samples."""
        # In the order in which samples would have brought them.
        first = {
            name: next((at for at, value in enumerate(values) if value is not None), None)
            for name, values in columns.items()
        }
        for name in sorted(
            (name for name, at in first.items() if at is not None), key=lambda name: first[name] or 0
        ):
            known = self.values.setdefault(name, [])
            known += [None] * (len(self.keys) - len(known))
            known += columns[name]
        self.seen.update(keys)
        self.keys += map(str.encode, keys)

    def store_frame(self, stored: Stored, size: int, first: int, listed: bool) -> None:
        """Add a frame.

        Args:
            stored: Its bytes as they are stored.
            size: How many bytes it has before compression.
            first: The number of its first sample.
            listed: Whether it is a frame of the index. The end of the tar is none.
        """
        if listed:
            checksum = frames.checksum(stored)
            self._frames.append((self._stored, len(stored), self._raw, size, first, checksum))
        self._seek.append((len(stored), size, bytes(stored[-4:])))
        self._parts.append(stored)
        self._stored += len(stored)
        self._raw += size

    def write(self, store: Output, stem: str, codec: Codec, tokens: int) -> ShardInfo:
        """Write the shard, whose frames are all stored, and its index.

        Args:
            store: Where they are written.
            stem: Their names without the extension.
            codec: How the frames are stored.
            tokens: How many tokens the shard has.
        """
        if codec == "zstd":
            self._parts.append(frames.seek_table(self._seek))
        digest = xxhash.xxh3_128()
        for part in self._parts:
            digest.update(part)
        samples = len(self.keys)
        for values in self.values.values():
            values += [None] * (samples - len(values))
        columns, tensors = encode(self.values)
        head, tail = index_parts(self._frames, self.cells, self.keys, len(self.columns), tensors)
        index = head + tail
        name = stem + _SUFFIX[codec]
        # The index first, so that there is never a shard without its index.
        store.write(f"{stem}.index", index)
        store.write(name, *self._parts)
        add(_ROWS, samples)
        add(_BYTES, sum(map(len, self._parts)))
        add(_SHARDS)
        return ShardInfo(
            url=name,
            codec=codec,
            fields=tuple(self.columns),
            bytes=sum(map(len, self._parts)),
            raw_bytes=self._raw,
            samples=samples,
            tokens=tokens,
            frames=len(self._frames),
            checksum=digest.hexdigest(),
            index_url=f"{stem}.index",
            index_bytes=len(index),
            index_checksum=xxhash.xxh3_128_hexdigest(index),
            columns=tuple(columns),
            index_head=len(head) if columns else 0,
            index_head_checksum=xxhash.xxh3_128_hexdigest(head) if columns else "",
            sparse=is_sparse(samples, len(self.columns), len(self.cells)),
        )
