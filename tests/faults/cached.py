"""What the fault tests of caches share: reading everything, and knowing what must come."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache

FrameId = tuple[int, int]


def frames_of(reader: DatasetReader) -> list[FrameId]:
    shards = enumerate(reader.manifest.shards)
    return [(shard, frame) for shard, info in shards for frame in range(info.frames)]


def digest(reader: DatasetReader, frame: FrameId) -> str:
    return hashlib.sha256(reader.frame(*frame)).hexdigest()


def read_all(url: str, cache: Cache, seed: int | None = None) -> tuple[dict[FrameId, str], dict[str, Any]]:
    """The digest of each frame, read with some look-ahead, and the counters."""
    reader = DatasetReader.open(url, cache=cache)
    order = frames_of(reader)
    if seed is not None:
        random.Random(seed).shuffle(order)
    reader.fetch_indexes_ahead([shard for shard, _ in order])
    found: dict[FrameId, str] = {}
    for begin in range(0, len(order), 8):
        reader.ahead.fetch(order[begin : begin + 16])
        found |= {frame: digest(reader, frame) for frame in order[begin : begin + 8]}
    disk = reader.blocks.tiers.disk
    assert disk is None or disk.flush(60)
    return found, reader.counters


def url_of(proxy: Any) -> str:
    return f"{proxy.url}/faults-cache"


def blocks_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("blocks/*/*"))


def small(folder: Path, **options: Any) -> Cache:
    """A cache whose RAM tier is of no use."""
    return Cache(folder, ram=1000, **options)


def needed(packed: Path) -> int:
    """Bytes of all frames and indexes."""
    reader = DatasetReader.open(str(packed))
    return sum(
        info.index_bytes + int(reader.index(shard).frame_size.sum())
        for shard, info in enumerate(reader.manifest.shards)
    )
