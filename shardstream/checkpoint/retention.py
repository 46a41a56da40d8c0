"""Deletes checkpoints that are no longer kept, and what attempts that were never committed have left."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import time
from collections.abc import Collection
from typing import NamedTuple

import msgspec
import xxhash

from shardstream.checkpoint.commit import PROBE, committed_steps, read_manifest
from shardstream.checkpoint.holds import Hold
from shardstream.checkpoint.layout import MANIFEST, is_attempt, step_folder, step_of
from shardstream.checkpoint.threads import in_threads
from shardstream.errors import CorruptionError, StorageError
from shardstream.storage.store import Options, Store, absolute, redact

__all__ = [
    "ABANDONED", "Run", "delete_attempt", "delete_if_empty", "delete_part", "delete_step", "local_attempts",
    "local_run", "prune", "prune_local", "sweep",
]  # fmt: skip

ABANDONED = 24 * 3600.0  # seconds without a new object, after which an attempt is taken for dead
SEEN = ".attempts.json"


class Run(NamedTuple):
    """The folder of all checkpoints of a run, with its options."""

    url: str
    options: Options = None

    def open(self, *below: str) -> Store:
        """The store of the run, or of a folder in it."""
        return Store.open("/".join([self.url.rstrip("/") or self.url, *below]), self.options)


def local_run(folder: str, run: Run) -> Run:
    """Where the copies of a run lie in a folder of this machine: each run has a folder of its own in it.

    Args:
        folder: What the user gave.
        run: The checkpoints.
    """
    url = redact(run.url).rstrip("/")
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", url.rpartition("/")[2]).lstrip(".")[:64] or "run"
    return Run(f"{absolute(folder).rstrip('/')}/{name}-{xxhash.xxh3_64_hexdigest(url.encode())}")


class _Seen(msgspec.Struct):
    """When the objects of an attempt were first seen as they are."""

    objects: str
    since: float


def _delete_folder(run: Run, *below: str) -> None:
    """Delete all objects of a folder that has no folders in it."""
    store = run.open(*below)
    store.clear_temporary()  # of writers that were killed
    in_threads(store.delete, store.list())
    path = store.local_path("")
    if path is not None:
        with contextlib.suppress(OSError):  # another process still writes to it, or has deleted it
            os.rmdir(path)


def delete_if_empty(run: Run, *below: str) -> None:
    """Delete a folder of a local disk if nothing is in it."""
    path = run.open(*below).local_path("")
    if path is not None:
        with contextlib.suppress(OSError):
            os.rmdir(path)


def delete_part(store: Store, attempt: str, names: Collection[str]) -> None:
    """Delete what a rank has written of an attempt that failed: a full disk would stay full. Raises nothing.

    Args:
        store: The folder of the checkpoint.
        attempt: The folder in it.
        names: The objects.
    """
    with contextlib.suppress(Exception):  # the error that is raised says more
        in_threads(lambda name: store.delete(f"{attempt}/{name}"), names)
    path = store.local_path(attempt)
    if path is not None:
        with contextlib.suppress(OSError):  # there is more, of other ranks
            os.rmdir(path)


def delete_step(run: Run, step: int) -> None:
    """Delete a committed checkpoint: its manifest first, so that nobody reads half of it, then its files."""
    name = step_folder(step)
    folder = run.open(name)
    try:
        manifest = read_manifest(folder)
    except CorruptionError:
        manifest = None  # which attempt it was is not known; `sweep` deletes it
    folder.delete(MANIFEST)
    if manifest is not None:
        _delete_folder(run, name, manifest.attempt)
    delete_if_empty(run, name)


def prune(run: Run, keep: int, unsound: Collection[int] = (), last: int | None = None) -> list[int]:
    """Delete all committed checkpoints but the newest.

    Args:
        run: The checkpoints.
        keep: How many stay, 1 or more.
        unsound: Steps that are known to be damaged, beside those whose manifest is. They do not count among
            those that stay, and they are deleted if they are older than these.
        last: The step that counts as the newest. Later ones stay, such as those of a job that went back to
            an earlier step.

    Returns:
        The steps that were deleted.
    """
    steps = [step for step in committed_steps(run.open()) if last is None or step <= last]
    sound = 0
    while steps and sound < keep:
        step = steps.pop()
        sound += step not in unsound and _has_manifest(run, step)
    for step in steps:
        delete_step(run, step)
    return steps


def _has_manifest(run: Run, step: int) -> bool:
    with contextlib.suppress(CorruptionError):
        return read_manifest(run.open(step_folder(step))) is not None
    return False


def prune_local(run: Run, keep: int, last: int) -> None:
    """Delete the files of all steps up to `last` but the newest on this machine's disk.

    Several ranks may do so. A folder with a manifest is a checkpoint of its own, which is left alone, and so
    is an attempt that a living process writes.
    """
    names = run.open().list()
    steps = sorted(step for name in names if (step := step_of(name)) is not None and step <= last)
    for step in steps[:-keep]:
        for attempt in local_attempts(run, step):
            path = run.open(step_folder(step)).local_path(attempt)
            hold = None if path is None else Hold.alone(path)
            if hold is not None:
                try:
                    delete_attempt(run, step, attempt)
                finally:
                    hold.release()
        delete_if_empty(run, step_folder(step))


def local_attempts(run: Run, step: int) -> list[str]:
    """The attempts of a step on this machine's disk; none if it is a checkpoint of its own."""
    inside = run.open(step_folder(step)).list()
    return [] if MANIFEST in inside else [name for name in inside if is_attempt(name)]


def delete_attempt(run: Run, step: int, attempt: str) -> None:
    """Delete an attempt that nobody writes any more, and the folder of its step if nothing else is there."""
    with contextlib.suppress(StorageError):  # another process has deleted it
        _delete_folder(run, step_folder(step), attempt)
    delete_if_empty(run, step_folder(step))


def sweep(run: Run, mine: Collection[str] = (), now: float | None = None) -> list[str]:
    """Delete attempts that were never committed and have had no new object for 24 hours.

    When an object was written is not asked, since stores say it in many ways. What an attempt has is noted in
    an object, and if it is the same 24 hours later, the attempt is deleted.

    Args:
        run: The checkpoints.
        mine: Attempts that are being written by the caller.
        now: Seconds since 1970; None for the time.

    Returns:
        The attempts that were deleted, each as STEP/ATTEMPT.
    """
    store, time_now = run.open(), time.time() if now is None else now
    before = _seen(store)
    after: dict[str, _Seen] = {}
    deleted: list[str] = []

    def is_old(place: str, objects: str) -> bool:
        known = before.get(place)
        if known is None or known.objects != objects:
            known = _Seen(objects, time_now)
        if time_now - known.since < ABANDONED:
            after[place] = known
            return False
        return True

    for name in store.list():
        if name.startswith(PROBE) and is_old(name, ""):
            store.delete(name)
        if step_of(name.rstrip("/")) is None:
            continue
        for attempt in _uncommitted(run, name):
            place = f"{name}/{attempt}"
            names = "\n".join(run.open(name, attempt).list())
            if attempt not in mine and is_old(place, xxhash.xxh3_64_hexdigest(names.encode())):
                _delete_folder(run, name, attempt)
                delete_if_empty(run, name)
                deleted.append(place)
    if after != before:
        store.write(SEEN, msgspec.json.encode(after))
    _sweep_temporary(store, time_now)
    return deleted


def _sweep_temporary(store: Store, now: float) -> None:
    """Delete files of a local disk that writers were killed in, a day after their last byte."""
    root = store.local_path("")
    for depth in ("", "step-*/", "step-*/*/"):
        for path in () if root is None else glob.iglob(f"{glob.escape(root)}/{depth}.tmp-*"):
            with contextlib.suppress(OSError):
                if now - os.stat(path).st_mtime > ABANDONED:
                    os.unlink(path)


def _seen(store: Store) -> dict[str, _Seen]:
    try:
        return msgspec.json.decode(store.read(SEEN), type=dict[str, _Seen])
    except msgspec.DecodeError:
        return {}
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise


def _uncommitted(run: Run, name: str) -> list[str]:
    folder = run.open(name)
    attempts = [each.rstrip("/") for each in folder.list()]
    try:
        manifest = read_manifest(folder)
    except CorruptionError:
        return []  # one of them was committed, and which is not known
    taken = "" if manifest is None else manifest.attempt
    return [attempt for attempt in attempts if is_attempt(attempt) and attempt != taken]
