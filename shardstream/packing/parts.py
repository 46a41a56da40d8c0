"""Many writers, each with its own part of a dataset: they claim a target together, and leave receipts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from shardstream.errors import CommitError, OptionError
from shardstream.format.manifest import FieldInfo, Manifest, ShardInfo
from shardstream.packing import reservation
from shardstream.packing.build_manifest import field_infos, tool
from shardstream.packing.job import Job
from shardstream.packing.reservation import Reservation
from shardstream.packing.shard_stream import RECEIPTS
from shardstream.storage.store import Store

__all__ = [
    "PartReceipt",
    "StreamJob",
    "claim_part",
    "fields_of",
    "forget_part",
    "lock_part",
    "write_part",
]

Kind = Literal["samples", "tokens"]
Dtype = Literal["uint16", "uint32"]


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
        unknown: The names in `keep` that none of its samples has. None: it has no samples.
    """

    part: int
    shards: list[ShardInfo]
    dtype: Dtype | None = None
    rejects: list[tuple[str, str]] = []
    unknown: list[str] | None = None


def receipt_name(part: int) -> str:
    """The name of the receipt of a part."""
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
        OptionError: The other parts have other options.
    """
    mine = Reservation(plan, old.fingerprint if old else "", tool(), part[1], record, kind)
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
    store.delete(receipt_name(part))
    for name in () if keep_shards else store.list():
        if name.startswith(f"{RECEIPTS}{number:06d}-"):
            store.delete(name)


def write_part(store: Store, receipt: PartReceipt) -> None:
    """Store the receipt of a part that is complete."""
    store.write(receipt_name(receipt.part), msgspec.json.encode(receipt))


def fields_of(
    kind: Kind, dtype: Dtype | None, shards: tuple[ShardInfo, ...], old: Manifest | None
) -> tuple[FieldInfo, ...]:
    """The fields of a dataset with new shards. See `PartReceipt` and `assemble`."""
    if kind == "tokens":
        return old.fields if old is not None else (FieldInfo("tokens", "tokens", dtype or "uint32"),)
    return field_infos(shards, old.fields if old else ())
