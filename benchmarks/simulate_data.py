"""Datasets for `simulate`: one that was packed, and synthetic ones of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.simulate_reader import Dataset
from shardstream.format.index import ShardIndex
from shardstream.format.manifest import FieldInfo, Manifest, ShardInfo
from shardstream.format.manifest_files import LARGE, make_body, make_stub
from shardstream.format.shards import Shards
from shardstream.read.reader import DatasetReader

__all__ = ["packed", "synthetic"]


def packed(folder: Path) -> Dataset:
    """A dataset that lies in a folder, as it is."""
    reader = DatasetReader.open(str(folder))
    indexes = [reader.index(shard) for shard in range(len(reader.manifest.shards))]
    return Dataset(reader.manifest, indexes.__getitem__, (folder / "manifest.json").stat().st_size)


def synthetic(shards: int, frames: int, per_frame: int, sample: int, prefixes: int = 1) -> Dataset:
    """A dataset of shards that are alike, without compression.

    Args:
        shards: How many shards there are.
        frames: Of a shard.
        per_frame: Samples of a frame.
        sample: Bytes of a sample.
        prefixes: See `Dataset`.
    """
    samples, size = frames * per_frame, per_frame * sample
    places = np.arange(frames, dtype=np.uint64)
    offsets = np.tile(np.arange(per_frame, dtype=np.int32) * sample, frames)[:, None]
    arrays: dict[str, Any] = {
        "frame_offset": places * np.uint64(size),
        "frame_size": np.full(frames, size, np.uint64),
        "frame_raw_offset": places * np.uint64(size),
        "frame_raw_size": np.full(frames, size, np.uint64),
        "frame_first": np.arange(frames + 1, dtype=np.uint64) * np.uint64(per_frame),
        "frame_checksum": places,
        "field_offset": offsets,
        "field_size": np.full((samples, 1), sample, np.int32),
        "key_bytes": np.full(8 * samples, ord("0"), np.uint8),
        "key_offset": np.arange(samples + 1, dtype=np.uint64) * np.uint64(8),
    }
    index = ShardIndex(**arrays)

    def one(number: int) -> ShardInfo:
        name = f"{number // 10_000:03d}/{number:06d}"
        return ShardInfo(
            url=f"{name}.tar.zst", codec="zstd", fields=("jpg",),
            bytes=frames * size, raw_bytes=frames * size,
            samples=samples, tokens=0, frames=frames,
            checksum=xxhash.xxh3_128_hexdigest(str(number).encode()), index_url=f"{name}.index",
            index_bytes=2000 + 34 * samples + 48 * frames,
            index_checksum=xxhash.xxh3_128_hexdigest(f"index {number}".encode()),
        )  # fmt: skip

    infos = tuple(map(one, range(shards)))
    manifest = Manifest.build("samples", (FieldInfo("jpg", "jpg"),), infos, {})
    whole = len(manifest.to_bytes())
    body = len(make_body(manifest)) if whole > LARGE else 0
    stub = len(make_stub(manifest, make_body(manifest)).to_bytes()) if body else whole
    if isinstance(manifest.shards, Shards):
        manifest.shards._made.update(enumerate(infos))  # objects that are there need not be made
    return Dataset(manifest, lambda shard: index, stub, body, prefixes)
