"""Compares the shards of a pack with the receipts of its tasks, by one listing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from shardstream.errors import StorageError
from shardstream.packing.result import Result
from shardstream.packing.shard_puts import checksum_of
from shardstream.storage.store import Entry, Store

__all__ = ["wrong_tasks"]

_AT_ONCE = 16  # objects that are read


class _Object(NamedTuple):
    task: int
    path: str
    size: int
    checksum: str
    version: str  # "" if it is not known


def wrong_tasks(store: Store, listed: Iterable[Entry], results: Iterable[Result]) -> set[int]:
    """The tasks that have shards or indexes that are missing, or are not those of their receipts.

    An object whose version is not that of the receipt is read: a copy of it has another version, too.

    Args:
        store: The target.
        listed: What is there.
        results: The results of the tasks.
    """
    there = {entry.path: entry for entry in listed}
    wrong: set[int] = set()
    suspects: list[_Object] = []
    for each in _objects(results):
        entry = there.get(each.path)
        if entry is None or entry.size != each.size:
            wrong.add(each.task)
        elif each.version and entry.version and each.version.strip('"') != entry.version.strip('"'):
            suspects.append(each)

    def is_right(each: _Object) -> bool:
        try:
            return checksum_of(store, each.path, each.size) == each.checksum
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise

    if suspects:
        with ThreadPoolExecutor(_AT_ONCE, "shardstream-check") as pool:
            for each, right in zip(suspects, pool.map(is_right, suspects), strict=True):
                if not right:
                    wrong.add(each.task)
    return wrong


def _objects(results: Iterable[Result]) -> Iterator[_Object]:
    for result in results:
        versions = result.versions
        for shard in result.shards:
            yield _Object(result.number, shard.url, shard.bytes, shard.checksum, versions.get(shard.url, ""))
            yield _Object(
                result.number,
                shard.index_url,
                shard.index_bytes,
                shard.index_checksum,
                versions.get(shard.index_url, ""),
            )
