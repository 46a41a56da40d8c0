"""The names of shards: `shard-000007`, `shard-000007-1`, and from number 10,000 on `000/shard-010000`.

A folder of an object store that holds very many objects is slow: S3 takes 3,500 writes a second for a prefix
until it has split it, and a directory of a local disk with very many entries is slow to list. Source: Amazon
S3, "Best practices design patterns: optimizing Amazon S3 performance".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from shardstream.storage.store import Entry, Store

__all__ = [
    "SHARD", "clear_temporary", "folders_of", "shard_entries", "shard_files", "shard_stem", "tag_of",
    "task_shard",
]  # fmt: skip

_IN_FOLDER = 10_000  # numbers of a folder; the first ones are in the dataset itself
_FOLDER = re.compile(r"\d{3,}\Z")
# A number has six digits or more: `06d` writes the millionth shard with seven.
SHARD = re.compile(
    r"(?:(?P<folder>\d{3,})/)?shard-(?P<number>\d{6,})(?:-(?P<place>\d+))?(?:\.[0-9a-f]{8})?"
    r"\.(?P<suffix>tar\.zst|tar|index)\Z"
)


def shard_stem(number: int, place: int = 0, tag: str = "") -> str:
    """The name of a shard without its extension.

    Args:
        number: The number of the slice of the input.
        place: How many shards of that slice come before it.
        tag: See `tag_of`.
    """
    folder = max(number, place) // _IN_FOLDER
    stem = f"shard-{number:06d}" + (f"-{place}" if place else "") + tag
    return f"{folder - 1:03d}/{stem}" if folder else stem


def tag_of(plan: str) -> str:
    """What stands in the names of the shards of a plan, if they may not be those of another plan."""
    return f".{plan[:8]}"


def task_shard(name: str) -> int | None:
    """The number in the name of a shard or of an index, which its task gave it; None for another object."""
    match = SHARD.match(name)
    return None if match is None else int(match["number"])


def folders_of(names: Iterable[str]) -> set[str]:
    """The folders of shards that are named, by themselves or by a shard in them."""
    found: set[str] = set()
    for name in names:
        match = SHARD.match(name)
        if match is None and _FOLDER.match(name):
            found.add(name)
        elif match is not None and match["folder"]:
            found.add(match["folder"])
    return found


def shard_files(store: Store, names: Collection[str]) -> Iterator[str]:
    """The names of all shards and indexes of a dataset, also of those that its manifest does not list.

    Args:
        store: The dataset.
        names: What `store.list()` gave.
    """
    yield from filter(SHARD.match, names)
    for folder in sorted(folders_of(names)):
        yield from filter(SHARD.match, (f"{folder}/{name}" for name in store.list(folder)))


def shard_entries(store: Store, folders: Iterable[str]) -> list[Entry]:
    """The objects of a dataset, with those in some folders of shards."""
    found = list(store.entries())
    for folder in sorted(folders):
        found += [entry._replace(path=f"{folder}/{entry.path}") for entry in store.entries(folder)]
    return found


def clear_temporary(store: Store) -> None:
    """Delete the temporary files of writers that were killed. No writer may be alive."""
    store.clear_temporary()
    if store.local_path("") is not None:
        for folder in folders_of(store.list()):
            store.clear_temporary(folder)
