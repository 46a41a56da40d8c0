"""Many writers, each with its own part of a dataset, and one commit for all of them.

Each part leaves a receipt in the store when it is closed. `commit` reads the receipts, and commits.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import msgspec
import xxhash

from shardstream.errors import CommitError, CorruptionError, OptionError, SourceError, StorageError
from shardstream.format.manifest import NAME, FieldInfo, Manifest, ShardInfo
from shardstream.packing import reservation
from shardstream.packing.build_manifest import assemble, field_infos, tool
from shardstream.packing.destination import Destination
from shardstream.packing.layout import Layout
from shardstream.packing.reservation import Reservation
from shardstream.packing.shard_stream import RECEIPTS
from shardstream.packing.sources.calls import Calls
from shardstream.packing.worker import Job
from shardstream.storage.store import Options, Store

__all__ = [
    "PartReceipt",
    "StreamJob",
    "claim_part",
    "commit",
    "fields_of",
    "forget_part",
    "lock_part",
    "write_part",
]

Kind = Literal["samples", "tokens"]
Dtype = Literal["uint16", "uint32"]
_SHARD = re.compile(r"shard-\d{6,}(-\d+)?\.(tar|tar\.zst|index)\Z")
_LISTED = 8  # parts that a message names


@dataclass(frozen=True)
class StreamJob(Job):
    """A pack whose samples come from this process.

    Args:
        holds: The kind of the dataset.
    """

    holds: Kind = "samples"

    @property
    def kind(self) -> Kind:
        return self.holds


class PartReceipt(msgspec.Struct):
    """Says that a part is complete. It is stored as JSON.

    Args:
        part: The number of the part.
        shards: Its shards in order.
        dtype: The dtype of its tokens; None for samples, and for a part without a document.
        rejects: Where its bad samples are, and why they are bad.
    """

    part: int
    shards: list[ShardInfo]
    dtype: Dtype | None = None
    rejects: list[tuple[str, str]] = []


def _receipt_name(part: int) -> str:
    return f".pack-part-{part:06d}.json"


@contextlib.contextmanager
def lock_part(store: Store, part: int) -> Iterator[None]:
    """Lock one part on this machine. Other parts may be written at the same time, but no commit is made.

    Raises:
        CommitError: The part is being written, or another packer or a commit is at work.
        StorageError: The target cannot be accessed.
    """
    mine = reservation.lock_machine(store, f"{reservation.LOCK}-{part:06d}")
    with reservation.lock_machine(store, shared=True), mine:
        yield


def claim_part(
    store: Store,
    plan: str,
    old: Manifest | None,
    part: tuple[int, int],
    record: dict[str, object],
    kind: Kind,
) -> None:
    """Reserve the target for all parts, or join those that have reserved it.

    Args:
        store: The target.
        plan: The identity of the pack, the same for all parts.
        old: The manifest that the parts are appended to, or None.
        part: The number of this part, and how many there are.
        record: The provenance of the new samples.
        kind: The kind of the dataset.

    Raises:
        CommitError: Another packer has reserved the target.
        OptionError: The other parts have other options; or there are shards of no dataset.
    """
    mine = Reservation(plan, old.fingerprint if old else "", tool(), part[1], record, kind)
    listed = {url for shard in (old.shards if old else ()) for url in (shard.url, shard.index_url)}
    present = store.list()
    foreign = [name for name in present if _SHARD.match(name) and name not in listed]
    if foreign and reservation.NAME not in present:
        raise OptionError(
            f"{store.url} holds {foreign[0]} but no dataset that it belongs to; choose an empty target"
        )
    try:
        store.create(reservation.NAME, msgspec.json.encode(mine))
        return
    except CommitError:
        found = reservation.read(store)
    if found is None or not found.parts:
        raise CommitError(
            f"{store.url}: another packer has claimed this target; empty it if that packer is dead, or "
            "choose another target"
        )
    if found.parts != part[1]:
        raise OptionError(
            f"{store.url}: the parts here are {found.parts}, not {part[1]}; give all writers the same "
            "number, or empty the target to start again"
        )
    if (found.plan, found.base) != (mine.plan, mine.base):
        raise OptionError(
            f"{store.url}: the other parts here are written with other options; give all writers the "
            "same, or empty the target to start again"
        )


def forget_part(store: Store, number: int, part: int, keep_shards: bool) -> None:
    """Delete the receipt of a part, which is written again, so that no commit takes a half of it.

    Args:
        store: The target.
        number: The number of the part's shards.
        part: The number of the part.
        keep_shards: Whether to keep the receipts of its shards.
    """
    store.delete(_receipt_name(part))
    for name in () if keep_shards else store.list():
        if name.startswith(f"{RECEIPTS}{number:06d}-"):
            store.delete(name)


def write_part(store: Store, receipt: PartReceipt) -> None:
    """Store the receipt of a part that is complete."""
    store.write(_receipt_name(receipt.part), msgspec.json.encode(receipt))


def fields_of(
    kind: Kind, dtype: Dtype | None, shards: tuple[ShardInfo, ...], old: Manifest | None
) -> tuple[FieldInfo, ...]:
    """The fields of a dataset with new shards. See `PartReceipt` and `assemble`."""
    if kind == "tokens":
        return old.fields if old is not None else (FieldInfo("tokens", "tokens", dtype or "uint32"),)
    return field_infos(shards, old.fields if old else ())


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
        OptionError: There are no parts, or their tokens differ in dtype.
        SourceError: All parts are empty.
        StorageError: The store cannot be accessed.
        CorruptionError: A receipt, or the reservation of the target, is damaged.
    """
    job = StreamJob(Calls(), os.fspath(dest), Layout(), storage_options=storage_options)
    destination = Destination(job, {}, append=False)
    store = destination.store
    with reservation.lock_machine(store) as lock:
        found = reservation.read(store)
        old = Manifest.from_bytes(store.read(NAME), store.where(NAME)) if store.exists(NAME) else None
        if found is None or not found.parts:
            if found is None and old is not None and _last(old)["options"].get("parts"):
                return old
            raise OptionError(
                f"{store.url}: no parts were written here; write them with Writer(..., part=(rank, world))"
            )
        if old is not None and old.fingerprint != found.base:
            destination.clean()  # a commit that was killed has done the rest
            return old
        receipts = _receipts(store, found.parts)
        shards = tuple(shard for receipt in receipts for shard in receipt.shards)
        if not shards and old is None:
            raise SourceError(f"{store.url}: all {found.parts} parts are empty; nothing was committed")
        _check_shards(store, receipts)
        fields = fields_of(found.kind, _dtype(store, receipts), shards, old)
        rejects = [reject for receipt in receipts for reject in receipt.rejects]
        manifest = assemble(found.kind, fields, old, shards, {**found.record, "rejected": len(rejects)})
        destination.write_rejects(rejects)
        destination.commit(old, manifest)
        _clear(store, manifest)
        destination.clean()
        if lock is not None:
            store.clear_temporary()
        return manifest


def _last(manifest: Manifest) -> dict[str, dict[str, object]]:
    """The provenance of the last samples."""
    last: dict[str, dict[str, object]] = (manifest.provenance.get("appended") or [manifest.provenance])[-1]
    return last if "options" in last else {"options": {}}


def _receipts(store: Store, parts: int) -> list[PartReceipt]:
    names = set(store.list())
    missing = [part for part in range(parts) if _receipt_name(part) not in names]
    if missing:
        some = ", ".join(map(str, missing[:_LISTED])) + (", ..." if len(missing) > _LISTED else "")
        raise CommitError(
            f"{store.url}: {len(missing)} of {parts} parts are missing: {some}. Write them, close their "
            "writers, and commit again"
        )

    def read(part: int) -> PartReceipt:
        try:
            return msgspec.json.decode(store.read(_receipt_name(part)), type=PartReceipt)
        except msgspec.DecodeError as error:
            raise CorruptionError(
                f"{store.where(_receipt_name(part))}: damaged; write part {part} again"
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


def _clear(store: Store, manifest: Manifest) -> None:
    """Delete the shards that an earlier writer of a part left over, and the locks of killed writers."""
    listed = {url for shard in manifest.shards for url in (shard.url, shard.index_url)}
    for name in store.list():
        if (_SHARD.match(name) and name not in listed) or name.startswith(f"{reservation.LOCK}-"):
            store.delete(name)
