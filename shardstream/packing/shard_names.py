"""The names of shards: `shard-000007`, `shard-000007-1`, and from number 10,000 on `000/shard-010000`.

A folder of an object store that holds very many objects is slow: S3 takes 3,500 writes a second for a prefix
until it has split it, and a directory of a local disk with very many entries is slow to list. Source: Amazon
S3, "Best practices design patterns: optimizing Amazon S3 performance".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from shardstream.errors import CommitError
from shardstream.format.manifest import NAME
from shardstream.packing import reservation
from shardstream.storage.store import Entry, Store

__all__ = [
    "ShardName", "check_folder", "clear_temporary", "folders_of", "is_shard", "shard_entries", "shard_files",
    "shard_name", "shard_stem", "tag_of", "task_shard",
]  # fmt: skip

_IN_FOLDER = 10_000  # numbers of a folder; the first ones are in the dataset itself
_FOLDER = re.compile(r"[0-9]{3,}\Z")
# A number has six digits or more: `06d` writes the millionth shard with seven.
_SHARD = re.compile(
    r"(?P<stem>(?:[0-9]{3,}/)?shard-(?P<number>[0-9]{6,18})(?:-(?P<place>[0-9]{1,18}))?"
    r"(?P<tag>\.[0-9a-f]{8})?)\.(?P<suffix>tar\.zst|tar|index)\Z"
)
_checked: set[tuple[str, str]] = set()  # by dataset: the folders that this process may put shards into


class ShardName(NamedTuple):
    """What the name of a shard or of an index says.

    Args:
        number: The number of the slice of the input.
        place: How many shards of that slice come before it.
        stem: The name without its extension.
        suffix: The extension.
    """

    number: int
    place: int
    stem: str
    suffix: str


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


def shard_name(name: str) -> ShardName | None:
    """What the name of an object says, if it is a shard or an index of the dataset. Else None.

    A dataset may lie in a folder of another, such as `2024`. So a folder only counts if it is the one that a
    shard of that number has.
    """
    match = _SHARD.match(name)
    if match is None:
        return None
    number, place = int(match["number"]), int(match["place"] or 0)
    stem = shard_stem(number, place, match["tag"] or "")
    # Earlier versions have put all shards into the root.
    if match["stem"] not in (stem, stem.rpartition("/")[2]):
        return None
    return ShardName(number, place, match["stem"], match["suffix"])


def is_shard(name: str) -> bool:
    """Whether an object is a shard or an index of the dataset, by its name."""
    return shard_name(name) is not None


def task_shard(name: str) -> int | None:
    """The number in the name of a shard or of an index, which its task gave it; None for another object."""
    found = shard_name(name)
    return None if found is None else found.number


def folders_of(names: Iterable[str]) -> set[str]:
    """The folders that may have shards: those that are named, by themselves or by a shard in them."""
    found: set[str] = set()
    for name in names:
        if _FOLDER.match(name):
            found.add(name)
        elif "/" in name and is_shard(name):
            found.add(name.partition("/")[0])
    return found


def _is_dataset(names: Collection[str]) -> bool:
    """Whether a folder with these objects is no folder of shards: a dataset of its own, or becomes one."""
    return NAME in names or reservation.NAME in names


def check_folder(store: Store, path: str) -> None:
    """Raise CommitError if the folder of a shard is a dataset of its own. It is looked at once.

    Args:
        store: The dataset.
        path: The name of the shard or of its index.
    """
    folder = path.rpartition("/")[0]
    if not folder or (store.url, folder) in _checked:
        return
    for name in (NAME, reservation.NAME):
        if store.exists(f"{folder}/{name}"):
            raise CommitError(
                f"{store.where(folder)} is another dataset, and {path} would lie in it; move that dataset to "
                "another folder"
            )
    _checked.add((store.url, folder))


def shard_files(store: Store, names: Collection[str]) -> Iterator[str]:
    """The names of all shards and indexes of a dataset, also of those that its manifest does not list.

    Args:
        store: The dataset.
        names: What `store.list()` gave.
    """
    yield from filter(is_shard, names)
    for folder in sorted(folders_of(names)):
        inside = store.list(folder)
        if not _is_dataset(inside):
            yield from filter(is_shard, (f"{folder}/{name}" for name in inside))


def shard_entries(store: Store, folders: Iterable[str]) -> list[Entry]:
    """The objects of a dataset, with the shards and indexes in some folders."""
    found = list(store.entries())
    for folder in sorted(folders):
        inside = store.entries(folder)
        if not _is_dataset({entry.path for entry in inside}):
            named = (entry._replace(path=f"{folder}/{entry.path}") for entry in inside)
            found += [entry for entry in named if is_shard(entry.path)]
    return found


def clear_temporary(store: Store) -> None:
    """Delete the temporary files of writers that were killed. No writer of the dataset may be alive.

    One that begins a dataset of its own in a folder has a lock there before it writes.
    """
    store.clear_temporary()
    if store.local_path("") is not None:
        for folder in folders_of(store.list()):
            if all(is_shard(f"{folder}/{name}") for name in store.list(folder)):
                store.clear_temporary(folder)
