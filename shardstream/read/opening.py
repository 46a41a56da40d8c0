"""Finds the manifest of a dataset, in the store or the cache; and says what to do if there is none."""

from __future__ import annotations

import functools
import logging
import os

from shardstream.errors import StorageError
from shardstream.format.manifest import MAX_BYTES, NAME, Manifest
from shardstream.format.manifest_files import Stub, is_stub, load_stub
from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.fetch.cached import wait_for_lock
from shardstream.storage.manifests import read_body, read_manifest
from shardstream.storage.offline import OfflineStore
from shardstream.storage.store import Store
from shardstream.storage.transport.failures import is_unreachable

__all__ = ["current_fingerprint", "open_manifest"]

log = logging.getLogger("shardstream.cache")

_WRITE = 1.0  # seconds to wait until the others find the manifest on the disk, even if this process soon ends
_LOOKED_AT = 200  # how many names in a folder are looked at


def open_manifest(store: Store, disk: DiskTier | None, connections: int = 0) -> Manifest:
    """The manifest of the dataset in `store`.

    It is written to `disk`. If the store may not be asked, or does not answer, the manifest comes from
    `disk`.

    Args:
        store: Where the dataset is.
        disk: The SSD tier of the cache, or None.
        connections: How many connections to the store are opened while the manifest is read, for what is read
            behind it.

    Raises:
        StorageError: There is no dataset, or no access to it.
        CorruptionError: The manifest is damaged.
    """
    if isinstance(store, OfflineStore):
        cached = None if disk is None else disk.manifest(store.url)
        if cached is None:
            where = "the cache" if disk is None else disk.path
            raise StorageError(
                f"{store.url}: offline=True, and {where} has no manifest of it: "
                f"warm it while the store can be reached"
            )
        return cached
    if connections:
        store.warm_up(NAME, connections)
    try:
        return _read(store, disk)
    except StorageError as error:
        cached = disk.manifest(store.url) if disk is not None and is_unreachable(error) else None
        if cached is None:
            raise
        log.warning(
            "%s; the manifest that the cache kept is used (fingerprint %s)", error, cached.fingerprint[:12]
        )
        return cached


def current_fingerprint(store: Store) -> str:
    """The fingerprint of the dataset in a store; of a manifest with a body, the body is not read.

    Raises:
        StorageError: There is no dataset, or no access to it.
        CorruptionError: The manifest is damaged.
    """
    data = store.read(NAME, MAX_BYTES)
    found = load_stub(data, store.where(NAME)) if is_stub(data) else Manifest.from_bytes(data)
    return found.fingerprint


def _read(store: Store, disk: DiskTier | None) -> Manifest:
    try:
        found, data = read_manifest(store, functools.partial(_body, disk))
    except StorageError as error:
        missing = isinstance(error.__cause__, FileNotFoundError) and "no such" not in str(error.__cause__)
        if missing or isinstance(error.__cause__, NotADirectoryError):
            raise StorageError(_no_dataset(store)) from error
        raise
    if disk is not None and not is_stub(data):
        disk.put_manifest(store.url, found.fingerprint, data)
    return found


def _body(disk: DiskTier | None, stub: Stub, store: Store) -> Manifest:
    """The manifest of a stub: of all processes that share `disk`, one reads it from the store."""
    if disk is None:
        return read_body(stub, store)[0]
    found = disk.manifest(store.url, stub.fingerprint)
    if found is None:
        lock = wait_for_lock(lambda: disk.lock_manifest(store.url, stub.fingerprint))
        try:
            found = disk.manifest(store.url, stub.fingerprint)  # another process may have fetched it
            if found is None:
                found, data = read_body(stub, store)
                disk.put_manifest(store.url, stub.fingerprint, stub.to_bytes() + data, lock)
                lock = None
                disk.flush(_WRITE)
                return found
        finally:
            if lock is not None:
                lock.release()
    disk.saw_manifest(store.url, stub.fingerprint)
    return found


def _no_dataset(store: Store) -> str:
    """Why `store` is no dataset, and what to do. Most often it is data that was not packed yet."""
    url, path = store.url.rstrip("/"), store.local_path("")
    pack, adopt = f"shardstream pack {url} DEST", f"shardstream index {url} DEST"
    path = None if path is None else path.rstrip("/")
    if path is not None and not os.path.exists(path):
        return f"{url}: no dataset here; there is no such file or folder"
    if path is not None and os.path.isdir(path):
        with os.scandir(path) as entries:
            names = [entry.name for _, entry in zip(range(_LOOKED_AT), entries, strict=False)]
        none = f"{url}: no dataset here ({NAME} is missing)"
        if any(name.endswith(".tar") for name in names):
            adopt = f"shardstream index {url}/*.tar DEST"
            return f"{none}; make one of its tars, which stay where they are: {adopt}"
        return f"{none}; make one of what the folder holds: {pack}" if names else none
    folder, name = url.rpartition("/")[::2]
    if name == NAME or (path is not None and os.path.exists(os.path.join(os.path.dirname(path), NAME))):
        return f"{url}: a file of a dataset; give the folder that it is in: {folder}"
    if name.endswith(".tar"):
        return f"{url}: a tar, and no dataset; make one of it, and it stays where it is: {adopt}"
    if path is not None or "." in name:
        what = "a file, and no dataset" if path is not None else f"no dataset here ({NAME} is missing)"
        return f"{url}: {what}; if it is data, pack it first: {pack}"
    return f"{url}: no dataset here ({NAME} is missing)"
