"""The stored bytes of a dataset, by block: which blocks there are, and how each is fetched and checked."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.format import frames
from shardstream.format.index import ShardIndex
from shardstream.format.manifest import Manifest
from shardstream.format.shards import shard_checksums, shard_values
from shardstream.read.damage import wrong_checksum
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.fetch.fetcher import Fetcher
from shardstream.storage.fetch.in_flight import BlockRequest
from shardstream.storage.transport.backends import Data

__all__ = ["STREAMS", "DatasetBlocks"]

Name = Callable[[int], str]
STREAMS = ("gzip", "zstd-stream")  # codecs of files that can only be decompressed from their beginning


class FrameUses(Protocol):
    """An object that knows when frames are needed."""

    def next_uses(self, shard: int) -> NDArray[np.float64]:
        """In how many epochs from now each frame of a shard is needed next, float64 [F]."""


class DatasetBlocks:
    """The blocks of one dataset, each as a request that says where it lies and how it is checked.

    Args:
        manifest: Of the dataset.
        load: (URL, first byte, number of bytes) -> these bytes.
        tiers: The cache, in which blocks are looked for first.
        name: From a shard to its name for messages.
        raw: Whether the tiers hold frames decompressed.

    Attributes:
        fetcher: Gives the bytes of a block.
    """

    def __init__(
        self, manifest: Manifest, load: Callable[[str, int, int], Data], tiers: Tiers, name: Name, raw: bool
    ) -> None:
        self._shards, self._name, self.raw = manifest.shards, name, raw
        self.fetcher = Fetcher(load, tiers)
        self.tiers = tiers
        self._by_name: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None

    @functools.cached_property
    def bytes(self) -> int:
        """The bytes of all shards."""
        return int(np.sum(shard_values(self._shards, "bytes")))

    def group(self, shard: int) -> str:
        """The name of the content of a shard and its index, made of their checksums."""
        info = self._shards[shard]
        return _group(info.checksum, info.index_checksum)

    def _shard_of(self, group: str) -> int | None:
        """The shard that a group is of; None if it is of no shard of this dataset."""
        if self._by_name is None:  # only tiers that make room ask for it
            checksums = (shard_checksums(self._shards, name) for name in ("checksum", "index_checksum"))
            groups = itertools.starmap(_group, zip(*checksums, strict=True))
            names = np.array([_beginning(group) for group in groups], np.uint64)
            order = np.argsort(names, kind="stable")
            self._by_name = names[order], order
        names, order = self._by_name
        wanted = np.uint64(_beginning(group))
        begin, end = (int(np.searchsorted(names, wanted, side)) for side in ("left", "right"))
        return next((shard for shard in order[begin:end].tolist() if self.group(shard) == group), None)

    def index(self, shard: int) -> BlockRequest:
        """The index of a shard, as stored; without its columns of values, which follow."""
        info = self._shards[shard]
        if not info.columns:
            return self.whole_index(shard)
        block = Block(self.group(shard), "index", info.index_head)
        return self._file(block, info.index_url, info.index_head_checksum, self._wrong_index(shard))

    def whole_index(self, shard: int) -> BlockRequest:
        """The file of the index of a shard, with its columns of values."""
        info = self._shards[shard]
        name = "columns" if info.columns else "index"
        block = Block(self.group(shard), name, info.index_bytes)
        return self._file(block, info.index_url, info.index_checksum, self._wrong_index(shard))

    def _wrong_index(self, shard: int) -> Callable[[], CorruptionError]:
        return partial(wrong_checksum, self._name(shard), "the index is damaged", "restore it or repack")

    def whole(self, shard: int) -> BlockRequest:
        """The file of a shard that is one compressed stream."""
        info = self._shards[shard]
        block = Block(self.group(shard), "whole", info.bytes)
        return self._file(block, info.url, info.checksum, partial(wrong_checksum, self._name(shard)))

    def _file(
        self, block: Block, url: str, checksum: str, wrong: Callable[[], CorruptionError]
    ) -> BlockRequest:
        """A file, or its beginning, as one block. `wrong` makes the error for another checksum."""

        def accept(stored: Data) -> Data:
            if xxhash.xxh3_128_hexdigest(stored) != checksum:
                raise wrong()
            return stored

        return BlockRequest(block, url, 0, block.size, accept)

    def frame(self, shard: int, frame: int, index: ShardIndex, soon: bool = True) -> BlockRequest:
        """One frame, as stored or decompressed; if the shard is a compressed stream, its whole file.

        Args:
            shard: The number of the shard.
            frame: The number of the frame.
            index: The index of the shard.
            soon: Whether the frame is needed next. False: it is needed at some time in the epoch.
        """
        info = self._shards[shard]
        if info.codec in STREAMS:
            return self.whole(shard)
        start, size = int(index.frame_offset[frame]), int(index.frame_size[frame])
        raw_size, raw = int(index.frame_raw_size[frame]), self.raw and info.codec != "none"

        def accept(stored: Data) -> Data:
            if frames.checksum(stored) != int(index.frame_checksum[frame]):
                raise wrong_checksum(f"{self._name(shard)}, frame {frame}")
            if not raw:
                return stored
            return frames.decompress(info.codec, stored, raw_size, f"{self._name(shard)}, frame {frame}")

        block = Block(self.group(shard), f"{frame}.raw" if raw else f"{frame}", raw_size if raw else size)
        return BlockRequest(block, info.url, start, size, accept, soon)

    def set_next_uses(self, needs: FrameUses) -> None:
        """Let the tiers ask `needs` when frames are needed next, for as long as the object lives."""
        next_uses, shard_of = weakref.WeakMethod(needs.next_uses), weakref.WeakMethod(self._shard_of)

        def known(group: str) -> NDArray[np.float64] | None:
            found, shards = next_uses(), shard_of()
            shard = None if found is None or shards is None else shards(group)
            return None if found is None or shard is None else found(shard)

        self.tiers.set_next_uses(needs, known)

    def counters(self, backend: str) -> dict[str, Any]:
        """The bytes that came from each tier, the requests that were sent, and the name of the backend."""
        return {**self.tiers.counters.as_dict(), "backend": backend}


def _group(checksum: str, index_checksum: str) -> str:
    return xxhash.xxh3_128_hexdigest(f"{checksum} {index_checksum}".encode())


def _beginning(group: str) -> int:
    """The first 8 bytes of the name of a group, which a name that is none may lack."""
    return int(group[:16] or "0", 16)
