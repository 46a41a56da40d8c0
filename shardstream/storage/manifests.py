"""The manifest of a dataset in its store: read, and written as the commit.

A manifest of very many shards is two objects: a body, put first, and manifest.json, the stub that names it,
put last. The body that an append replaces stays until the next commit, for readers that have read the stub
of before, perhaps from a proxy that keeps it for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from shardstream.errors import CommitError, CorruptionError, StorageError
from shardstream.format.manifest import MAX_BYTES, NAME, Manifest
from shardstream.format.manifest_files import (
    BODY,
    LARGE,
    Stub,
    body_name,
    is_stub,
    load_body,
    load_stub,
    make_body,
    make_stub,
)
from shardstream.storage.store import Store

__all__ = ["commit_manifest", "read_body", "read_manifest", "stored_manifest"]

log = logging.getLogger("shardstream.storage")

# The stub and the store that has it -> the manifest.
FromBody = Callable[[Stub, Store], Manifest]


def read_body(stub: Stub, store: Store, fingerprint: bool = False) -> tuple[Manifest, bytes]:
    """(the manifest in the body that a stub names, the content of the body).

    Args:
        stub: The stub.
        store: Where the dataset is.
        fingerprint: Whether the fingerprint of the content is computed, too.

    Raises:
        CorruptionError: The body is missing or damaged, or is not the one that the stub names.
        StorageError: There is no access to it.
    """
    where = store.where(stub.body.url)
    try:
        data = store.read(stub.body.url, MAX_BYTES)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CorruptionError(
                f"{where}: missing, and {NAME} names it; copy it again, or rebuild the dataset"
            ) from error
        raise
    return load_body(stub, data, where, fingerprint), data


def _checked(stub: Stub, store: Store) -> Manifest:
    return read_body(stub, store, fingerprint=True)[0]


def read_manifest(store: Store, body: FromBody = _checked) -> tuple[Manifest, bytes]:
    """(the manifest of the dataset in a store, the content of its file manifest.json).

    What comes damaged is read once more: it may have been damaged on its way, or another manifest was
    committed meanwhile.

    Args:
        store: Where the dataset is.
        body: Gives the manifest of a stub. By default it comes from the store, with all checks.

    Raises:
        CorruptionError: The manifest, or its body, is damaged; or the body is missing.
        StorageError: There is no dataset, or no access to it.
    """
    try:
        return _read(store, body)
    except CorruptionError:
        return _read(store, body)


def _read(store: Store, body: FromBody) -> tuple[Manifest, bytes]:
    data = store.read(NAME, MAX_BYTES)
    if is_stub(data):
        return body(load_stub(data, store.where(NAME)), store), data
    return Manifest.from_bytes(data, store.where(NAME)), data


def stored_manifest(store: Store) -> Manifest | None:
    """The manifest of the dataset in a store, with all checks; None if there is no dataset."""
    return read_manifest(store)[0] if store.exists(NAME) else None


def commit_manifest(
    store: Store,
    manifest: Manifest,
    replaced: str | None,
    keep_bodies: bool = False,
    version: str | None = None,
) -> None:
    """Write a manifest. From then on readers see its shards.

    Args:
        store: Where the dataset is.
        manifest: Its manifest.
        replaced: The fingerprint of the manifest that it takes the place of, "" if that was damaged; None if
            there must be none.
        keep_bodies: Whether all bodies that lie there stay.
        version: What names the version of the file manifest.json that it takes the place of. None: that of
            any.

    Raises:
        CommitError: There is a manifest, and none may be replaced; or it has another version by now.
    """
    small = manifest.to_bytes()
    large = len(small) > LARGE
    if large:
        small = make_stub(manifest, _put_body(store, manifest)).to_bytes()
    if replaced is None:
        store.create(NAME, small)
    elif version is not None:
        store.replace(NAME, small, version)
    else:
        store.write(NAME, small)
    if not keep_bodies and (large or replaced is not None):
        _clear(store, {body_name(manifest.fingerprint), body_name(replaced or "")})


def _put_body(store: Store, manifest: Manifest) -> bytes:
    """Put the body; returns its content, which may be that of another pack of the same shards."""
    data, name = make_body(manifest), body_name(manifest.fingerprint)
    try:
        store.create(name, data)
        return data
    except CommitError:
        pass
    # Another version of zstd may have written other bytes, which a stub may name by now: they stay.
    found = store.read(name, MAX_BYTES)
    try:
        load_body(make_stub(manifest, found), found, store.where(name))
        return found
    except Exception:  # noqa: BLE001 - whatever lies there is no body of this manifest
        store.write(name, data)
        return data


def _clear(store: Store, kept: set[str]) -> None:
    """Delete the bodies that no reader needs any more. The commit is done, so it raises nothing."""
    try:
        for name in store.list():
            if BODY.match(name) and name not in kept:
                store.delete(name)
    except StorageError as error:
        log.warning("%s; a manifest of an earlier time stays, which does no harm", error)
