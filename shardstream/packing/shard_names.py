"""The names of shards: `shard-000007`, `shard-000007-1`, and from number 10,000 on `000/shard-010000`.

A folder of an object store that holds very many objects is slow: S3 takes 3,500 writes a second for a prefix
until it has split it, and a directory of a local disk with very many entries is slow to list. Source: Amazon
S3, "Best practices design patterns: optimizing Amazon S3 performance".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from shardstream.storage.store import Store

__all__ = ["SHARD", "clear_temporary", "number_of", "shard_files", "shard_stem"]

_IN_FOLDER = 10_000  # numbers of a folder; the first ones are in the dataset itself
_FOLDER = re.compile(r"\d{3,}\Z")
# A number has six digits or more: `06d` writes the millionth shard with seven.
SHARD = re.compile(r"(?:\d{3,}/)?shard-(\d{6,})(?:-(\d+))?\.(tar\.zst|tar|index)\Z")


def shard_stem(number: int, place: int = 0) -> str:
    """The name of a shard without its extension.

    Args:
        number: The number of the slice of the input.
        place: How many shards of that slice come before it.
    """
    folder = max(number, place) // _IN_FOLDER
    stem = f"shard-{number:06d}" + (f"-{place}" if place else "")
    return f"{folder - 1:03d}/{stem}" if folder else stem


def number_of(name: str) -> int | None:
    """The number in the name of a shard or of its index; None if it is another file."""
    match = SHARD.match(name)
    return None if match is None else int(match[1])


def shard_files(store: Store, names: Sequence[str]) -> Iterator[str]:
    """The names of all shards and indexes of a dataset, also of those that its manifest does not list.

    Args:
        store: The dataset.
        names: What `store.list()` gave.
    """
    yield from filter(SHARD.match, names)
    for folder in filter(_FOLDER.match, names):
        yield from filter(SHARD.match, (f"{folder}/{name}" for name in store.list(folder)))


def clear_temporary(store: Store) -> None:
    """Delete the temporary files of writers that were killed. No writer may be alive."""
    store.clear_temporary()
    if store.local_path("") is not None:
        for folder in filter(_FOLDER.match, store.list()):
            store.clear_temporary(folder)
