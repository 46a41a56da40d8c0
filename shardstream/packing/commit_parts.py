"""commit(): one dataset of the parts that many writers have written.

Each part leaves a receipt in the store when it is closed. `commit` reads the receipts, and commits.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import msgspec
import xxhash

from shardstream.errors import CommitError, CorruptionError, OptionError, SourceError, StorageError
from shardstream.format.manifest import Manifest, ShardInfo
from shardstream.packing import reservation
from shardstream.packing.build_manifest import assemble
from shardstream.packing.columns import check_columns, check_known
from shardstream.packing.destination import Destination
from shardstream.packing.layout import Layout
from shardstream.packing.parts import Dtype, PartReceipt, StreamJob, fields_of, receipt_name
from shardstream.packing.sources.calls import Calls
from shardstream.storage.manifests import stored_manifest
from shardstream.storage.store import Options, Store

__all__ = ["commit"]

_LISTED = 8  # parts that a message names


def commit(dest: str | os.PathLike[str], *, storage_options: Options = None) -> Manifest:
    """Make one dataset of the parts that `Writer(dest, part=(rank, world))` has written.

    Call it once, in any process, after all writers have been closed. A second call returns the same.

    Args:
        dest: The path or URL that the writers were given.
        storage_options: Options for the store, as fsspec takes them.

    Returns:
        The manifest of the dataset. The shards of part 0 come first, then those of part 1, and so on.

    Raises:
        CommitError: A part is missing, is being written, or is not whole. The message names it.
        OptionError: There are no parts, their tokens differ in dtype, or no sample has a name in `keep`.
        SourceError: All parts are empty.
        StorageError: The store cannot be accessed.
        CorruptionError: A receipt, or the reservation of the target, is damaged.
    """
    job = StreamJob(Calls(), os.fspath(dest), Layout(), storage_options=storage_options)
    destination = Destination(job, {}, append=False)
    store = destination.store
    with reservation.lock_machine(store):
        found = reservation.read(store)
        old = stored_manifest(store)
        if found is None or not found.parts:
            if found is None and old is not None and _last(old)["options"].get("parts"):
                return old
            raise OptionError(
                f"{store.url}: no parts were written here; write them with Writer(..., part=(rank, world))"
            )
        if found.tasks:
            raise OptionError(
                f"{store.url}: these are parts of pack, not of writers; commit them with pack(..., "
                "commit=True), or --commit"
            )
        if old is not None and old.fingerprint != found.base:
            destination.clean()  # a commit that was killed has done the rest
            return old
        destination.hold(found)
        receipts = _receipts(store, found.parts)
        shards = tuple(shard for receipt in receipts for shard in receipt.shards)
        if not shards and old is None:
            raise SourceError(f"{store.url}: all {found.parts} parts are empty; nothing was committed")
        _check_shards(store, receipts)
        check_known(receipt.unknown for receipt in receipts)
        fields = fields_of(found.kind, _dtype(store, receipts), shards, old)
        rejects = [reject for receipt in receipts for reject in receipt.rejects]
        manifest = assemble(found.kind, fields, old, shards, {**found.record, "rejected": len(rejects)})
        check_columns(manifest, found.record["options"].get("keep"))
        destination.write_rejects(rejects)
        destination.look(old)
        destination.clear(manifest)  # an earlier writer of a part may have got further
        store.delete_many([name for name in store.list() if name.startswith(f"{reservation.LOCK}-")])
        destination.commit(old, manifest)
        destination.clean()
        return manifest


def _last(manifest: Manifest) -> dict[str, dict[str, object]]:
    """The provenance of the last samples."""
    last: dict[str, dict[str, object]] = (manifest.provenance.get("appended") or [manifest.provenance])[-1]
    return last if "options" in last else {"options": {}}


def _receipts(store: Store, parts: int) -> list[PartReceipt]:
    names = set(store.list())
    missing = [part for part in range(parts) if receipt_name(part) not in names]
    if missing:
        some = ", ".join(map(str, missing[:_LISTED])) + (", ..." if len(missing) > _LISTED else "")
        error = CommitError(
            f"{store.url}: {len(missing)} of {parts} parts are missing: {some}. Write them, close their "
            "writers, and commit again"
        )
        error.parts = tuple(missing)
        raise error

    def read(part: int) -> PartReceipt:
        try:
            return msgspec.json.decode(store.read(receipt_name(part)), type=PartReceipt)
        except msgspec.DecodeError as error:
            raise CorruptionError(
                f"{store.where(receipt_name(part))}: damaged; write part {part} again"
            ) from error

    with ThreadPoolExecutor(store.concurrency) as pool:
        return list(pool.map(read, range(parts)))


def _check_shards(store: Store, receipts: list[PartReceipt]) -> None:
    """Check that the shards are those of the receipts. An earlier writer of the part may have come late."""

    def check(part: int, shard: ShardInfo) -> None:
        again = (
            f"{store.where(shard.url)}: it is not the shard that part {part} wrote; write part {part} again"
        )
        try:
            whole = (
                store.size(shard.url) == shard.bytes
                and xxhash.xxh3_128_hexdigest(store.read(shard.index_url)) == shard.index_checksum
            )
        except StorageError as error:
            raise CommitError(again) from error
        if not whole:
            raise CommitError(again)

    with ThreadPoolExecutor(store.concurrency) as pool:
        todo = [pool.submit(check, receipt.part, shard) for receipt in receipts for shard in receipt.shards]
        for one in todo:
            one.result()


def _dtype(store: Store, receipts: list[PartReceipt]) -> Dtype | None:
    found: dict[Dtype, int] = {}
    for receipt in receipts:
        if receipt.dtype is not None:
            found.setdefault(receipt.dtype, receipt.part)
    if len(found) > 1:
        (one, first), (other, second) = found.items()
        raise OptionError(
            f"{store.url}: the tokens of part {first} are {one}, those of part {second} are {other}; "
            "write them with Writer(..., tokens='uint32')"
        )
    return next(iter(found), None)
