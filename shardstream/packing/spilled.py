"""What the first pass of a shuffle has left: whether all of it is there, and what of it to delete."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping

from shardstream.errors import StorageError
from shardstream.packing.result import Result
from shardstream.packing.shard_names import tag_of
from shardstream.storage.store import Entry, Store

__all__ = ["FOLDER", "clear_local", "holds_spill", "spill_name", "spilled_entries"]

FOLDER = ".spill"
_TAGGED = re.compile(r"\.[0-9a-f]{8}\Z")


def spill_name(task: int, place: int, tag: str) -> str:
    """The name of an object of the first pass.

    Args:
        task: The number of the task.
        place: How many objects of that task come before it.
        tag: See `tag_of`.
    """
    return f"{FOLDER}/{task:06d}" + (f"-{place}" if place else "") + tag


def spilled_entries(store: Store) -> dict[str, Entry]:
    """The objects of the first pass in a store, by name, of one listing."""
    try:
        return {f"{FOLDER}/{entry.path}": entry for entry in store.entries(FOLDER)}
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise


def holds_spill(result: Result, there: Mapping[str, Entry]) -> bool:
    """Whether the objects that a task of the first pass has put are there, and are the same.

    Args:
        result: What the task did.
        there: What is in the store; see `spilled_entries`.
    """
    for place, ends in enumerate(result.spilled):
        name = spill_name(result.number, place, tag_of(result.plan))
        entry, version = there.get(name), result.versions.get(name, "")
        if entry is None or entry.size != int.from_bytes(ends[-8:], "little"):
            return False
        if version and entry.version and version.strip('"') != entry.version.strip('"'):
            return False
    return True


def clear_local(folder: str, tags: tuple[str, ...]) -> None:
    """Delete the samples in a folder of a local store, but for objects of plans with other tags.

    Args:
        folder: The folder.
        tags: See `tag_of`. "" stands for all.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if _TAGGED.search(entry.name) and not entry.name.endswith(tags):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
        os.rmdir(folder)
