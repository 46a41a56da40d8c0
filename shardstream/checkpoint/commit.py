"""The commit: one conditional put of the manifest, once the parts of all ranks are in the store.

The store is the barrier: no rank talks to another one in the background.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from shardstream.checkpoint.agreement import OtherRankError
from shardstream.checkpoint.layout import MANIFEST, receipt_name, step_of
from shardstream.checkpoint.manifest import (
    MAX_BYTES,
    Chunk,
    FileInfo,
    Manifest,
    Receipt,
    TensorInfo,
    decode,
    encode,
)
from shardstream.checkpoint.receipts import failure_name, is_failure
from shardstream.checkpoint.threads import in_threads
from shardstream.errors import CommitError, CorruptionError, StateError, StorageError
from shardstream.storage.store import Store
from shardstream.version import __version__

__all__ = [
    "PATIENCE", "PROBE", "collect", "commit", "committed_steps", "conditional_put", "is_damaged", "merge",
    "now", "read_manifest", "wait_for_manifest",
]  # fmt: skip

PATIENCE = 600.0  # seconds without a new object, after which the other ranks are taken for dead
# Backends whose stores can refuse to overwrite. Others look first, which is too late beside another writer.
_CONDITIONAL = (
    "obstore-",
    "fsspec-s3",
    "fsspec-gs",
    "fsspec-gcs",
    "fsspec-az",
    "fsspec-abfs",
    "fsspec-memory",
)
_PAUSES = (0.02, 1.0)  # seconds between two listings, at first and at most

PROBE = ".probe-"  # begins the names of objects by which it is tried what a store can do

S = TypeVar("S", Manifest, Receipt)


class Stopped(Protocol):
    """Waits so many seconds; returns whether the attempt has failed meanwhile."""

    def __call__(self, seconds: float, /) -> bool: ...


def now() -> str:
    """The time, in UTC, as manifests have it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def collect(
    folder: Store, inside: Store, attempt: str, world: int, stopped: Stopped, patience: float = PATIENCE
) -> list[Receipt]:
    """The receipts of all ranks, once they and all files are in the store with their sizes.

    Args:
        folder: The folder of the checkpoint.
        inside: The folder of the attempt, which is listed.
        attempt: Its name.
        world: How many ranks there are.
        stopped: Ends the wait.
        patience: Seconds without a new object after which it is an error.

    Raises:
        StorageError: Objects did not come, or a rank has failed.
        CorruptionError: An object has another size than was written, or a receipt is damaged.
    """
    wanted = {receipt_name(rank): rank for rank in range(world)}
    found: dict[int, Receipt] = {}
    seen: set[str] = set()
    changed, pause = time.monotonic(), _PAUSES[0]
    while True:
        names = set(inside.list())
        failed = [rank for rank in range(world) if failure_name(rank) in names]
        if failed:
            raise OtherRankError(f"{inside.url}: rank {failed[0]} has failed; its own error says why")
        new = [name for name in names if name in wanted and wanted[name] not in found]
        for receipt in in_threads(lambda name: _receipt(folder, attempt, name), new):
            found[receipt.rank] = receipt
        missing = {file.name for receipt in found.values() for file in receipt.files} - names
        if len(found) == world and not missing:
            break
        if names - seen:
            changed, pause = time.monotonic(), _PAUSES[0]
            seen = names
        if time.monotonic() - changed > patience:
            absent = sorted(set(range(world)) - set(found))
            what = f"the parts of ranks {absent[:8]}" if absent else f"files such as {min(missing)}"
            raise StorageError(f"{inside.url}: {what} did not come in {patience:.0f} s")
        if stopped(pause):
            raise StorageError(f"{inside.url}: given up")
        pause = min(pause * 1.5, _PAUSES[1])
    receipts = [found[rank] for rank in range(world)]
    _check_sizes(folder, attempt, [file for receipt in receipts for file in receipt.files])
    return receipts


def _receipt(folder: Store, attempt: str, name: str) -> Receipt:
    return _sealed(folder, f"{attempt}/{name}", Receipt)


def _sealed(folder: Store, path: str, kind: type[S]) -> S:
    """A manifest or a receipt. It is read again if it is damaged: the bytes may have changed on their way."""
    for tries in (2, 1, 0):
        try:
            return decode(folder.read(path, MAX_BYTES), kind, folder.where(path))
        except CorruptionError:
            if not tries or folder.local_path(path) is not None:
                raise
    raise AssertionError


def _check_sizes(folder: Store, attempt: str, files: Sequence[FileInfo]) -> None:
    def check(file: FileInfo) -> None:
        path = f"{attempt}/{file.name}"
        size = folder.size(path)
        if size != file.bytes:
            raise CorruptionError(f"{folder.where(path)} has {size} bytes, {file.bytes} were written")

    in_threads(check, files)


def merge(receipts: Sequence[Receipt]) -> tuple[list[FileInfo], dict[str, TensorInfo]]:
    """All files and tensors of these parts."""
    files: list[FileInfo] = []
    tensors: dict[str, TensorInfo] = {}
    for receipt in receipts:
        first = len(files)
        files += receipt.files
        for name, tensor in receipt.tensors.items():
            chunks = [Chunk(c.file + first, c.start, c.shape, c.offsets) for c in tensor.chunks]
            if name in tensors:
                tensors[name].chunks.extend(chunks)
            else:
                tensors[name] = TensorInfo(tensor.dtype, tensor.shape, chunks)
    return files, tensors


def commit(
    folder: Store, step: int, attempt: str, receipts: Sequence[Receipt], *, values: Any = None,
    modules: Sequence[str] = (), data: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None, conditional: bool = True, replace: bool = False,
) -> Manifest:  # fmt: skip
    """Put the manifest of an attempt. From then on readers see the checkpoint.

    Args:
        folder: The folder of the checkpoint.
        step: Its step.
        attempt: The folder of its files.
        receipts: Of all ranks, from `collect`.
        values: See `Manifest`; so are `modules`, `data` and `extra`.
        conditional: Whether the store has a conditional put, see `conditional_put`. Without it the manifest
            is put if there is none yet, which is safe only if there is one writer.
        replace: Whether to replace a manifest that is there, as on a local disk whose store has none.

    Raises:
        StateError: The step is committed already, and that is another attempt.
        CorruptionError: The parts do not make whole tensors.
    """
    files, tensors = merge(receipts)
    manifest = Manifest(
        step, attempt, len(receipts), now(), f"shardstream {__version__}", files, tensors, values,
        list(modules), dict(data or {}), dict(extra or {}),
    ).check(folder.where(MANIFEST))  # fmt: skip
    taken = f"{folder.url}: this checkpoint is committed already, and is never overwritten"
    encoded = encode(manifest)
    try:
        if replace:
            folder.write(MANIFEST, encoded)
        elif not conditional:
            if folder.exists(MANIFEST):
                raise CommitError(taken)
            folder.write(MANIFEST, encoded)
        else:
            folder.create(MANIFEST, encoded)
    except StorageError as error:
        # The answer to a request that had an effect may be lost, and another process may finish the same.
        with contextlib.suppress(StorageError, CorruptionError):
            there = read_manifest(folder)
            if there is not None and there.attempt == attempt:
                return there
        if isinstance(error, CommitError):
            raise StateError(taken) from error
        raise
    return manifest


def read_manifest(folder: Store) -> Manifest | None:
    """The manifest of a checkpoint's folder; None if it was not committed.

    Raises:
        CorruptionError: It is damaged.
    """
    try:
        return _sealed(folder, MANIFEST, Manifest)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def is_damaged(folder: Store, attempt: str) -> bool:
    """Whether the manifest that is there now is damaged, or that of an attempt which was found damaged.

    Args:
        folder: The folder of the checkpoint.
        attempt: The attempt; "" if it is not known.
    """
    try:
        found = read_manifest(folder)
    except CorruptionError:
        return True
    return found is not None and found.attempt == attempt


def wait_for_manifest(
    folder: Store, inside: Store, attempt: str, patience: float, limit: float | None,
    damaged: str | None = None,
) -> bool:  # fmt: skip
    """Ask the store until the manifest is there: how ranks but the first learn of the commit.

    Args:
        folder: The folder of the checkpoint.
        inside: The folder of the attempt.
        attempt: Its name.
        patience: Seconds without a new object, after which it will not come.
        limit: When to return at the latest, of `time.monotonic`; or None.
        damaged: The damaged attempt that this one takes the place of, "" if its manifest is what is damaged.
            None: there is none.

    Returns:
        Whether it is there; False at the limit.

    Raises:
        StorageError: A rank has failed, or the manifest did not come.
        StateError: Another attempt was committed.
    """
    end, pause, seen = time.monotonic() + patience, _PAUSES[0], 0
    while not folder.exists(MANIFEST) or (damaged is not None and is_damaged(folder, damaged)):
        names = inside.list()
        failed = [name for name in names if is_failure(name)]
        if len(names) > seen:
            seen, end = len(names), time.monotonic() + patience
        if failed or time.monotonic() > end:
            why = f"{failed[0]} is there" if failed else f"no manifest came in {patience:.0f} s"
            raise StorageError(f"{folder.url} was not committed: {why}")
        if limit is not None and time.monotonic() > limit:
            return False
        time.sleep(pause)
        pause = min(_PAUSES[1], pause * 1.5)
    manifest = read_manifest(folder)
    if manifest is not None and manifest.attempt != attempt:
        raise StateError(f"{folder.url}: this checkpoint was committed by another job")
    return True


def committed_steps(run: Store) -> list[int]:
    """The steps whose checkpoints are committed, ascending.

    Args:
        run: The folder of all checkpoints of a run.
    """
    steps = sorted(step for name in run.list() if (step := step_of(name.rstrip("/"))) is not None)
    there = in_threads(lambda step: run.exists(f"step-{step}/{MANIFEST}"), steps)
    return [step for step, committed in zip(steps, there, strict=True) if committed]


def conditional_put(store: Store) -> bool:
    """Whether the store refuses to put an object that exists, at once and for all writers. It is tried.

    Args:
        store: Where two small objects are written and deleted.
    """
    name = f"{PROBE}{secrets.token_hex(8)}"
    local = store.local_path(name)
    if local is None and not store.backend.startswith(_CONDITIONAL):
        return False
    try:
        store.create(name, b"1")
        if local is not None:
            os.link(local, f"{local}-link")
            os.unlink(f"{local}-link")
        store.create(name, b"2")
    except CommitError:
        return True
    except OSError as error:  # a file system without hard links
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        store.delete(name)
    return False
