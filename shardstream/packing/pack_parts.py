"""The parts of a pack: processes without an engine that each do a share of its tasks, and then one commit.

All parts compute the same plan. The first one reserves the target and says in the reservation what it packs
and with which versions; the others compare. A task leaves its receipt in the target, so that it does not
matter which process has done it, or how often.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from shardstream.errors import CommitError, OptionError
from shardstream.format.manifest import Manifest
from shardstream.format.shown import counted
from shardstream.packing import reservation
from shardstream.packing.build_manifest import next_number, tool
from shardstream.packing.destination import Destination
from shardstream.packing.differences import differences
from shardstream.packing.job import Job, input_bytes
from shardstream.packing.outcome import Outcome
from shardstream.packing.passes import commit_outcome
from shardstream.packing.receipts import Some, discard
from shardstream.packing.reservation import Reservation
from shardstream.packing.result import Result
from shardstream.packing.runner import Runner
from shardstream.packing.share import shares
from shardstream.packing.sources import Task
from shardstream.packing.stream_target import checked_part
from shardstream.packing.versions import versions

__all__ = ["PackedPart", "checked_pack_part", "commit_parts", "missing_parts", "run_part"]

_LISTED = 8  # parts or tasks that a message names


@dataclass(frozen=True)
class PackedPart:
    """What one part of a pack did.

    Args:
        part: Its number, from 0.
        parts: How many parts there are.
        tasks: How many tasks it has.
        samples: How many samples are in its shards.
        shards: How many shards.
        bytes: Their bytes.
        rejected: How many samples were rejected.
        committed: Whether the dataset is committed already, so that nothing was left to do.
    """

    part: int
    parts: int
    tasks: int = 0
    samples: int = 0
    shards: int = 0
    bytes: int = 0
    rejected: int = 0
    committed: bool = False


def checked_pack_part(
    part: tuple[int, int] | None, commit: bool, limit: int | None, shuffle: int | None
) -> tuple[int, int] | None:
    """`part` as two ints. The arguments are those of `pack`.

    Raises:
        OptionError: It is no part, or an option does not go with parts.
    """
    part = checked_part(part)
    if part is None and not commit:
        return None
    if part is not None and commit:
        raise OptionError("part does a share of a pack, and commit ends the pack: give one of them")
    if limit is not None:
        raise OptionError("limit counts the samples of all tasks, which no part knows: leave it out")
    if shuffle is not None:
        raise OptionError("parts cannot shuffle: leave shuffle out, or pack with an engine")
    return part


def run_part(
    job: Job, tasks: Sequence[Task], destination: Destination, runner: Runner, record: dict[str, Any],
    part: tuple[int, int],
) -> PackedPart:  # fmt: skip
    """Do the tasks of one part that have no receipt yet.

    Args:
        job: The pack.
        tasks: The tasks of all parts.
        destination: Where the pack is committed.
        runner: Runs the tasks.
        record: The provenance of the pack.
        part: The number of the part, and how many there are.

    Raises:
        OptionError: The other parts have another input, other options or other versions.
        CommitError: Another packer is at work at the target, or it holds another dataset.
    """
    store = destination.store
    if destination.committed() is not None:
        return PackedPart(*part, committed=True)
    share = shares(tasks, part[1])[part[0]]
    # Parts share the lock, so that no commit and no other packer of this machine is at work meanwhile.
    with reservation.lock_machine(store, shared=True) as lock:
        if destination.committed() is not None:
            return PackedPart(*part, committed=True)
        old = destination.old_manifest()
        if not _join(destination, _reservation(job, tasks, destination, record, old, part[1]), old):
            return PackedPart(*part, committed=True)
        job = replace(
            job, first_shard=next_number(old), claim=destination.claim, tag=destination.tag, part=part
        )
        try:
            results = runner.results(job, "task", share, True, () if lock is None else (lock,))
            destination.claim.check(store, now=True)
        except CommitError:
            # Another copy of this part was faster, and all parts were committed.
            if destination.committed() is None:
                raise
            some = Some(part[0], {task.number for task in share})
            discard(store, store.list(), "task", destination.plan, some)
            return PackedPart(*part, committed=True)
    shards = [shard for result in results for shard in result.shards]
    return PackedPart(
        *part,
        tasks=len(results),
        samples=sum(result.samples for result in results),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        rejected=sum(max(result.rejected, len(result.rejects)) for result in results),
    )


def commit_parts(
    job: Job, tasks: Sequence[Task], unread: list[tuple[str, str]], beside: list[tuple[str, str]],
    destination: Destination, record: dict[str, Any], max_rejects: float,
) -> Manifest:  # fmt: skip
    """Commit what all parts have packed. A second call returns the same.

    Args:
        job: The pack.
        tasks: The tasks of all parts.
        unread: The files that could not be planned: where, and why.
        beside: The files that are no input: where, and why.
        destination: Where it is committed.
        record: The provenance of the pack.
        max_rejects: The share of samples that may be rejected.

    Raises:
        CommitError: Tasks are missing. The message names their parts, and so does its attribute `parts`.
        OptionError: No part was begun here, or this is the commit of another pack.
        SourceError: Nothing was packed, or more was rejected than `max_rejects` allows.
    """
    store = destination.store
    with reservation.lock_machine(store) as lock:
        if (manifest := destination.committed()) is not None:
            destination.clean()
            return manifest
        old = destination.old_manifest()
        found = reservation.read(store)
        if found is None:
            raise OptionError(
                f"{store.url}: no part of this pack was begun here; run all parts first: the same command "
                "with --part I/N instead of --commit, I from 0 to N-1"
            )
        _compare(store.url, _reservation(job, tasks, destination, record, old, found.parts), found)
        done = _finished(destination, old, tasks)
        if missing := {task.number for task in tasks} - done.keys():
            raise missing_parts(store.url, tasks, found.parts, missing)
        # From now on copies of parts that are still at work write nothing more.
        destination.hold(reservation.reserve(store, found, True, lock is not None)[0])
        job = replace(job, first_shard=next_number(old), claim=destination.claim, tag=destination.tag)
        results = [done[number] for number in sorted(done)]
        if wrong := destination.wrong(results):
            destination.forget("task", wrong, job.first_shard)
            raise missing_parts(store.url, tasks, found.parts, wrong)
        outcome = Outcome(results, results, unread, beside)
        return commit_outcome(job, old, outcome, destination, record, max_rejects, "--commit")


def _finished(destination: Destination, old: Manifest | None, tasks: Sequence[Task]) -> dict[int, Result]:
    """The results of the tasks that are done."""
    sizes = {task.number: input_bytes(task) for task in tasks}
    done: dict[int, Result] = {}
    for _ in range(2):  # a part that ends may fold its receipts while they are read
        destination.look(old)
        found = destination.finished("task")[0]
        done |= {n: result for n, result in found.items() if sizes.get(n) == result.input_bytes}
        if done.keys() == sizes.keys():
            break
    return done


def missing_parts(where: str, tasks: Sequence[Task], parts: int, missing: set[int]) -> CommitError:
    """The error that says which parts have to run, or to run again, before the commit.

    Args:
        where: The target.
        tasks: The tasks of all parts.
        parts: How many parts there are.
        missing: The numbers of the tasks that are missing.
    """
    lacks: dict[int, list[int]] = {}
    sizes: list[int] = []
    for part, share in enumerate(shares(tasks, parts)):
        sizes.append(len(share))
        if some := sorted(task.number for task in share if task.number in missing):
            lacks[part] = some
    told = [
        f"part {part} lacks {'all of its' if len(some) == sizes[part] else f'{len(some):,} of its'} "
        f"{counted(sizes[part], 'task')} ({_ranges(some)})"
        for part, some in list(lacks.items())[:_LISTED]
    ]
    more = "; ..." if len(lacks) > _LISTED else ""
    numbers = _ranges(list(lacks), most=1000)
    error = CommitError(
        f"{where}: {len(lacks):,} of {counted(parts, 'part')} are not done, so nothing was committed: "
        f"{'; '.join(told)}{more}. Run these parts, again if they have failed, and then commit again. "
        f"The same command with --part {next(iter(lacks))}/{parts} instead of --commit runs the first of "
        f"them. For an array of jobs: {numbers}"
    )
    error.parts = tuple(lacks)
    error.tasks = tuple(sorted(missing))
    return error


def _ranges(numbers: Sequence[int], most: int = _LISTED) -> str:
    """Numbers in order as "0,3-7", the form that job arrays take."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in found]
    return ",".join(shown[:most]) + (",..." if len(shown) > most else "")


def _reservation(
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


def _join(destination: Destination, mine: Reservation, old: Manifest | None) -> bool:
    """Reserve the target for all parts, or compare with the part that has; returns False if all is done."""
    store = destination.store
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
    _compare(store.url, mine, found)
    # Each part asks by itself, since the first one may not know it yet.
    destination.hold(
        msgspec.structs.replace(found, tagged=found.tagged or not reservation.creates_once(store))
    )
    return True


def _compare(where: str, mine: Reservation, found: Reservation) -> None:
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
