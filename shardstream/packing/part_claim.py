"""How the parts of a pack share its target: the first one reserves it, and the others compare.

The reservation says what is packed, and with which versions. A part that would do otherwise is told what
differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from shardstream.errors import CommitError, OptionError
from shardstream.format.manifest import Manifest
from shardstream.format.shown import counted
from shardstream.packing import reservation
from shardstream.packing.build_manifest import tool
from shardstream.packing.destination import Destination
from shardstream.packing.differences import differences
from shardstream.packing.job import Job
from shardstream.packing.reservation import Reservation
from shardstream.packing.sources import Task
from shardstream.packing.versions import versions

__all__ = ["agreement", "compare", "join"]


def agreement(
    job: Job, tasks: Sequence[Task], destination: Destination, record: dict[str, Any], old: Manifest | None,
    parts: int,
) -> Reservation:  # fmt: skip
    """What all parts of a pack agree on."""
    return Reservation(
        destination.plan,
        old.fingerprint if old else "",
        tool(),
        parts,
        record,
        job.kind,
        versions=versions(job),
        tasks=_digest(tasks),
        epoch=1,
    )


def _digest(tasks: Iterable[Task]) -> str:
    """A checksum of how the input is cut. Where it lies is left out: machines may mount it elsewhere."""
    digest = hashlib.sha256()
    encode = msgspec.msgpack.Encoder().encode
    for task in tasks:
        digest.update(encode([task.number, [span[1:] for span in task.files]]))
    return digest.hexdigest()


def join(destination: Destination, mine: Reservation, old: Manifest | None) -> bool:
    """Reserve the target for all parts, or compare with the part that has; returns False if all is done."""
    store = destination.store
    try:
        present, _ = destination.look(old)
    except OptionError:
        # A listing takes its time: it may have the shards of another part, and not yet the reservation.
        if reservation.read(store) is None:
            raise
        present, _ = destination.look(old)
    if reservation.NAME not in present:
        # Of a pack that ended long ago. They go before there is a reservation, so that no part counts them.
        destination.delete_receipts(present)
    try:
        store.create(reservation.NAME, msgspec.json.encode(mine))
        found: Reservation | None = mine
        if destination.committed() is not None:  # between the look at the manifest and the reservation
            store.delete(reservation.NAME)
            return False
    except CommitError:
        found = reservation.read(store)
    if found is None:  # a commit was faster
        if destination.committed() is not None:
            return False
        raise CommitError(
            f"{store.url}: the reservation of this pack is gone, and nothing was committed: was the target "
            "emptied? Run the part again"
        )
    compare(store.url, mine, found)
    destination.first = found is mine
    # Each part asks by itself, since the first one may not know it yet.
    once = not found.tagged and reservation.creates_once(store)
    destination.hold(msgspec.structs.replace(found, tagged=not once))
    destination.allow_copies(once)
    return True


def compare(where: str, mine: Reservation, found: Reservation) -> None:
    """Check that this process does the pack that the first part has begun.

    Args:
        where: The target.
        mine: What this process would do.
        found: What the first part does.
    """
    if not found.tasks:
        what = "the parts of writers are" if found.parts else "another packer is"
        raise CommitError(
            f"{where}: {what} at work here, or was killed. Finish that pack, choose another target, or empty "
            "this one"
        )
    if mine.parts != found.parts:
        raise OptionError(
            f"{where}: this pack was begun in {counted(found.parts, 'part')}, not {mine.parts:,}; give all "
            "parts the same number, or empty the target to start again"
        )
    told = differences(_agreed(mine), _agreed(found))
    if not told and mine.tasks != found.tasks:
        told = ["the input is cut into other tasks, as when a file was changed or cannot be read"]
    if not told and (mine.plan, mine.base) != (found.plan, found.base):
        told = ["the dataset that is appended to, or the option append, differs"]
    if told:
        raise OptionError(
            f"{where}: another part began this pack otherwise, so that the bytes could differ: "
            f"{'; '.join(told)}. Give all parts the same, or empty the target to start again"
        )


def _agreed(reserved: Reservation) -> Mapping[str, Any]:
    known = {name: value for name, value in reserved.record.items() if name != "tool"}
    content = {**known, "versions": reserved.versions}
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(content))
    return decoded
