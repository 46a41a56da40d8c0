"""What checkpoints there are, what is in one, and whether it is sound. Torch is not needed."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from shardstream.checkpoint.commit import committed_steps, read_manifest
from shardstream.checkpoint.files import Files, verify_file
from shardstream.checkpoint.layout import byte_size, step_folder
from shardstream.checkpoint.manifest import Manifest
from shardstream.checkpoint.retention import Run
from shardstream.checkpoint.threads import in_threads
from shardstream.errors import CorruptionError, StateError, StorageError
from shardstream.progress import Bytes, Report

__all__ = ["Listed", "described", "listed", "manifest_at", "problems"]


class Listed(NamedTuple):
    """A committed checkpoint.

    Attributes:
        step: Its step.
        created: When it was committed; "" if its manifest is damaged.
        world: How many ranks wrote it.
        tensors: How many tensors it has.
        bytes: Of all its files.
        folder: Where its files lie.
        damage: What is wrong with its manifest; "" if nothing is.
    """

    step: int
    created: str
    world: int
    tensors: int
    bytes: int
    folder: str
    damage: str


def listed(run: Run) -> list[Listed]:
    """All committed checkpoints, oldest first. Their files are not read."""

    def look(step: int) -> Listed:
        folder = run.open(step_folder(step))
        try:
            found = read_manifest(folder)
        except CorruptionError as error:
            return Listed(step, "", 0, 0, 0, folder.url, str(error))
        if found is None:
            return Listed(step, "", 0, 0, 0, folder.url, "it was deleted meanwhile")
        where = folder.where(found.attempt)
        return Listed(step, found.created, found.world, len(found.tensors), found.bytes, where, "")

    return in_threads(look, committed_steps(run.open()))


def manifest_at(run: Run, step: int | None) -> Manifest:
    """The manifest of a step, or of the newest one if that is None.

    Raises:
        StateError: There is none.
    """
    if step is None:
        steps = committed_steps(run.open())
        if not steps:
            raise StateError(f"{run.open().url}: there are no checkpoints")
        step = steps[-1]
    found = read_manifest(run.open(step_folder(step)))
    if found is None:
        raise StateError(f"{run.open().url}: step {step} is not committed")
    return found


def described(manifest: Manifest) -> dict[str, Any]:
    """What is in a checkpoint, for people and machines: sizes and dtypes, values, places of loaders."""
    groups: dict[str, Counter[str]] = {}
    for name, tensor in manifest.tensors.items():
        found = groups.setdefault(name.partition("/")[0], Counter())
        found["tensors"] += 1
        found["bytes"] += byte_size(tensor.dtype, tensor.shape)
        found["sharded"] += len(tensor.chunks) > 1
        found[tensor.dtype] += 1
    return {
        "step": manifest.step,
        "created": manifest.created,
        "tool": manifest.tool,
        "world": manifest.world,
        "attempt": manifest.attempt,
        "bytes": manifest.bytes,
        "files": len(manifest.files),
        "modules": manifest.modules,
        "tensors": {name: dict(counts) for name, counts in groups.items()},
        "values": {key: value for key, value in (manifest.values or {}).items() if key not in groups},
        "data": manifest.data,
    }


def problems(run: Run, step: int, progress: Report = None) -> list[str]:
    """Read and verify all files of a step.

    Args:
        run: The checkpoints.
        step: The step.
        progress: Called with a Progress after each file, or None.

    Returns:
        What is damaged: each names the file and the tensors. Empty: nothing is.
    """
    folder = run.open(step_folder(step))
    try:
        manifest = manifest_at(run, step)
    except CorruptionError as error:
        return [str(error)]
    files = Files(folder, manifest)
    done = Bytes(progress, sum(file.bytes for file in manifest.files))

    def check(number: int) -> str:
        try:
            verify_file(files, number)
        except CorruptionError as error:
            return str(error)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return str(error)
            raise
        done.add(manifest.files[number].bytes)
        return ""

    return [found for found in in_threads(check, range(len(manifest.files)), 4) if found]
