"""Reads shards of a dataset through a cache and prints their digest: python -m tests.cachefill URL DIR SHARDS

A program of its own, small and without torch, to be killed at each of its system calls. All of them are made
by one thread, in the same order in every run: strace counts the calls of each thread apart.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from shardstream.read.reader import DatasetReader
from shardstream.storage.cache import write_behind
from shardstream.storage.cache.options import Cache


def digest_of(
    reader: DatasetReader, shards: int | None = None, after_each: Callable[[], object] = lambda: None
) -> str:
    """One digest of all frames of the first shards, in natural order."""
    digest = hashlib.sha256()
    for shard, info in enumerate(reader.manifest.shards[:shards]):
        for frame in range(info.frames):
            digest.update(reader.frame(shard, frame))
            after_each()
    return digest.hexdigest()


_waiting: list[Callable[[], None]] = []


class Later:
    """In the place of a thread: what it would do waits until the only thread there is comes to it."""

    def __init__(self, target: Callable[[], None], **_: Any) -> None:
        self._target = target

    def start(self) -> None:
        _waiting.append(self._target)


def catch_up() -> None:
    """Do what waits."""
    while _waiting:
        _waiting.pop()()


def main(url: str, folder: str, shards: str) -> None:
    write_behind.threading = SimpleNamespace(**{**vars(threading), "Thread": Later})  # type: ignore[assignment]
    reader = DatasetReader.open(url, cache=Cache(folder, disk="1GB", ram=1000))
    print(digest_of(reader, int(shards), catch_up))


if __name__ == "__main__":
    main(*sys.argv[1:])
