"""Reads all frames of a dataset through a cache and prints their digest: python -m tests.cachefill URL DIR

A program of its own, small and without torch, to be killed at each of its system calls.
"""

from __future__ import annotations

import hashlib
import sys

from shardstream.read.reader import DatasetReader
from shardstream.storage.cache import Cache


def digest_of(reader: DatasetReader) -> str:
    """One digest of all frames, in natural order."""
    digest = hashlib.sha256()
    for shard, info in enumerate(reader.manifest.shards):
        for frame in range(info.frames):
            digest.update(reader.frame(shard, frame))
    return digest.hexdigest()


def main(url: str, folder: str) -> None:
    reader = DatasetReader.open(url, cache=Cache(folder, disk="1GB", ram=1000))
    found = digest_of(reader)
    disk = reader.kept.tiers.disk
    if disk is not None:
        disk.flush(30)
    print(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
