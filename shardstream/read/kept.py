"""The stored bytes of a dataset by block: what is kept in the cache tiers, fetched ahead, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.format import frames
from shardstream.format.index import ShardIndex
from shardstream.format.manifest import Manifest
from shardstream.storage.blocks import Block
from shardstream.storage.cache import Tiers
from shardstream.storage.fetch import Fetcher
from shardstream.storage.flights import Want
from shardstream.storage.stores import Data

__all__ = ["STREAMS", "Kept"]

Name = Callable[[int], str]
STREAMS = ("gzip", "zstd-stream")  # codecs of files that can only be entered at their beginning


class Kept:
    """The blocks of one dataset. `raw`: frames are kept decompressed."""

    def __init__(
        self, manifest: Manifest, load: Callable[[str, int, int], Data], tiers: Tiers, name: Name, raw: bool
    ) -> None:
        self._shards, self._name, self.raw = manifest.shards, name, raw
        self.fetcher = Fetcher(load, tiers)
        self.tiers = tiers
        self._groups = {self.group(number): number for number in range(len(self._shards))}

    def group(self, shard: int) -> str:
        """What names the content of a shard and of its index."""
        info = self._shards[shard]
        return xxhash.xxh3_128_hexdigest(f"{info.checksum} {info.index_checksum}".encode())

    def index(self, shard: int) -> Want:
        """The index of a shard, as stored."""
        info = self._shards[shard]
        block = Block(self.group(shard), "index", info.index_bytes)
        damage = "the index is damaged (wrong checksum); restore it or repack"
        return self._file(shard, block, info.index_url, info.index_checksum, damage)

    def whole(self, shard: int) -> Want:
        """The file of a shard that is one compressed stream."""
        info = self._shards[shard]
        block = Block(self.group(shard), "whole", info.bytes)
        damage = "damaged (wrong checksum); restore the shard or repack"
        return self._file(shard, block, info.url, info.checksum, damage)

    def _file(self, shard: int, block: Block, url: str, checksum: str, damage: str) -> Want:
        """A file that is one block; `damage` is what to say where it has another checksum."""

        def accept(stored: Data) -> Data:
            if xxhash.xxh3_128_hexdigest(stored) != checksum:
                raise CorruptionError(f"{self._name(shard)}: {damage}")
            return stored

        return Want(block, url, 0, block.size, accept)

    def frame(self, shard: int, frame: int, index: ShardIndex, soon: bool = True) -> Want:
        """One frame, as stored or decompressed; for a compressed stream, the whole file."""
        info = self._shards[shard]
        if info.codec in STREAMS:
            return self.whole(shard)
        start, size = int(index.frame_offset[frame]), int(index.frame_size[frame])
        raw_size, raw = int(index.frame_raw_size[frame]), self.raw and info.codec != "none"

        def accept(stored: Data) -> Data:
            if frames.checksum(stored) != int(index.frame_checksum[frame]):
                where = f"{self._name(shard)}, frame {frame}"
                raise CorruptionError(f"{where}: damaged (wrong checksum); restore the shard or repack")
            if not raw:
                return stored
            return frames.decompress(info.codec, stored, raw_size, f"{self._name(shard)}, frame {frame}")

        block = Block(self.group(shard), f"{frame}.raw" if raw else f"{frame}", raw_size if raw else size)
        return Want(block, info.url, start, size, accept, soon)

    def plan(self, reader: object, uses: Callable[[int], NDArray[np.float64]]) -> None:
        """Tell the tiers in how many epochs each frame of a shard is needed next."""
        groups = self._groups
        self.tiers.plan(reader, lambda group: uses(groups[group]) if group in groups else None)

    def counters(self, backend: str) -> dict[str, Any]:
        """Bytes by tier, and what it took to get them."""
        fetcher, tiers = self.fetcher, self.tiers
        return {
            "ram_bytes": tiers.memory_bytes,
            "disk_bytes": tiers.disk_bytes,
            "remote_bytes": fetcher.remote_bytes,
            "requests": fetcher.requests,
            "refetches": fetcher.refetches + (tiers.disk.damaged if tiers.disk is not None else 0),
            "backend": backend,
        }
