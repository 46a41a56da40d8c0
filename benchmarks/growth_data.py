"""Datasets of up to 10^5 shards for `growth`: copies of one shard, and numbers as a pack writes them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import xxhash

import shardstream as ss
from shardstream.format.manifest import FieldInfo, Manifest, ShardInfo

COPIES = 64


def pack(folder: Path, samples: int, text: int = 0, **options: Any) -> ShardInfo:
    """One shard of so many samples below `folder`, each of a text of so many bytes or more."""
    place = folder / f"{samples}"
    with ss.Writer(place, shard_size="1GiB", **options) as writer:
        for number in range(samples):
            writer.write({"__key__": f"{number:08d}", "txt": f"sample {number}".ljust(text)})
    (shard,) = Manifest.from_bytes((place / "manifest.json").read_bytes()).shards
    return shard


def manifest_of(shard: ShardInfo, shards: int) -> Manifest:
    """A dataset of copies of one shard."""

    suffix = "tar" if shard.codec == "none" else "tar.zst"

    def copy(number: int) -> ShardInfo:
        name = f"{shard.samples}/{number % COPIES:02d}"
        checksum = xxhash.xxh3_128_hexdigest(f"{number}".encode())
        return msgspec.structs.replace(
            shard, url=f"{name}.{suffix}", index_url=f"{name}.index", checksum=checksum
        )

    return Manifest.build("samples", (FieldInfo("txt", "txt"),), tuple(map(copy, range(shards))), {})


def realistic(shards: int) -> Manifest:
    """Numbers as a pack of text writes them: sizes that vary, and checksums, which do not compress."""
    drawn = random.Random(1)

    def one(number: int) -> ShardInfo:
        samples, frames = int(drawn.gauss(5000, 100)), drawn.randint(63, 66)
        return ShardInfo(
            url=f"shard-{number:06d}.tar.zst", codec="zstd", fields=("txt",),
            bytes=int(drawn.gauss(40e6, 4e5)), raw_bytes=67_108_864 - 512 * drawn.randint(0, 2000),
            samples=samples, tokens=0, frames=frames,
            checksum=f"{drawn.getrandbits(128):032x}", index_url=f"shard-{number:06d}.index",
            index_bytes=2000 + 34 * samples + 48 * frames + drawn.randint(0, 400),
            index_checksum=f"{drawn.getrandbits(128):032x}",
        )  # fmt: skip

    return Manifest.build("samples", (FieldInfo("txt", "txt"),), tuple(map(one, range(shards))), {})
