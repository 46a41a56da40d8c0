"""The parts of a pack: processes without an engine that each do a share of its tasks, and then one commit.

All parts compute the same plan. A task leaves its receipt in the target, so that it does not matter which
process has done it, or how often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shardstream.errors import CommitError, OptionError, StorageError
from shardstream.format.manifest import Manifest
from shardstream.format.shown import counted
from shardstream.packing import reservation
from shardstream.packing.build_manifest import next_number
from shardstream.packing.destination import Destination
from shardstream.packing.job import Bucket, Job, input_bytes
from shardstream.packing.outcome import Outcome
from shardstream.packing.part_claim import agreement, compare, join
from shardstream.packing.passes import commit_outcome
from shardstream.packing.receipts import discard
from shardstream.packing.result import Result
from shardstream.packing.runner import Runner
from shardstream.packing.share import shares
from shardstream.packing.sources import Task
from shardstream.packing.stream_target import checked_part

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
        waits: Only of a shuffle: whether other parts have to read their input before samples can be put in
            order. Then the part has to run once more; or the commit does it alone.
    """

    part: int
    parts: int
    tasks: int = 0
    samples: int = 0
    shards: int = 0
    bytes: int = 0
    rejected: int = 0
    committed: bool = False
    waits: bool = False


def checked_pack_part(
    part: tuple[int, int] | None, commit: bool, limit: int | None, engine: object
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
    if part is not None and engine != "local":
        raise OptionError("a part runs in its own process and workers: leave out engine, or part")
    if limit is not None:
        raise OptionError("limit counts the samples of all tasks, which no part knows: leave it out")
    return part


def run_part(
    job: Job, tasks: Sequence[Task], destination: Destination, runner: Runner, record: dict[str, Any],
    part: tuple[int, int],
) -> PackedPart:  # fmt: skip
    """Do the tasks of one part that have no receipt yet.

    Of a shuffle these are its tasks of the first pass, and if all parts have done theirs, of the second.

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
    # Parts share the lock, so that no commit and no other packer of this machine is at work meanwhile.
    with reservation.lock_machine(store, shared=True) as lock:
        if destination.committed() is not None:
            return PackedPart(*part, committed=True)
        inherited = () if lock is None else (lock,)
        numbers = {task.number for task in tasks}
        try:
            old = destination.old_manifest()
            if not join(destination, agreement(job, tasks, destination, record, old, part[1]), old):
                return PackedPart(*part, committed=True)
            job = replace(
                job, first_shard=next_number(old), claim=destination.claim, tag=destination.tag, part=part
            )
            destination.put_plan(tasks, part)
            job, first, second = _passes(job, tasks, destination)
            read = written = runner.results(job, first, shares(tasks, part[1])[part[0]], True, inherited)
            waits = False
            if second != first:
                destination.claim.check(store, now=True)
                done = _finished(destination, old, first, tasks)
                waits, written = len(done) < len(tasks), []
                if not waits:
                    job, gathered = _gathering(job, done)
                    numbers |= {task.number for task in gathered}
                    mine = shares(gathered, part[1])[part[0]]
                    written = runner.results(job, second, mine, True, inherited)
            destination.claim.check(store, now=True)
        except (OptionError, StorageError):
            # A copy of this part was faster, and all parts were committed meanwhile.
            if destination.committed() is None:
                raise
            left = store.list()
            discard(store, left, destination.plan, part[:1], numbers)
            if reservation.NAME not in left:
                destination.clear_spill(left)
                destination.clear_plan(left)
            return PackedPart(*part, committed=True)
    shards = [shard for result in written for shard in result.shards]
    return PackedPart(
        *part,
        tasks=len(read),
        samples=sum(result.samples for result in read),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        rejected=sum(max(result.rejected, len(result.rejects)) for result in read),
        waits=waits,
    )


def commit_parts(
    job: Job, tasks: Sequence[Task], unread: list[tuple[str, str]], beside: list[tuple[str, str]],
    destination: Destination, runner: Runner, record: dict[str, Any], max_rejects: float,
) -> Manifest:  # fmt: skip
    """Commit what all parts have packed. A second call returns the same.

    Of a shuffle it does what is left of the second pass.

    Args:
        job: The pack.
        tasks: The tasks of all parts.
        unread: The files that could not be planned: where, and why.
        beside: The files that are no input: where, and why.
        destination: Where it is committed.
        runner: Runs the rest of a shuffle.
        record: The provenance of the pack.
        max_rejects: The share of samples that may be rejected.

    Raises:
        CommitError: Tasks are missing. The message names their parts, and so does its attribute `parts`.
        OptionError: No part was begun here, or this is the commit of another pack.
        SourceError: Nothing was packed, or more was rejected than `max_rejects` allows.
    """
    with reservation.lock_machine(destination.store) as lock:
        if (manifest := destination.committed()) is not None:
            destination.clean()
            return manifest
        try:
            return _commit(job, tasks, unread, beside, destination, runner, record, max_rejects, lock)
        except (OptionError, StorageError):
            # Another commit may have ended meanwhile, or only what is left over could not be deleted.
            if (manifest := destination.committed()) is None:
                raise
            destination.clean()
            return manifest


def _commit(
    job: Job, tasks: Sequence[Task], unread: list[tuple[str, str]], beside: list[tuple[str, str]],
    destination: Destination, runner: Runner, record: dict[str, Any], max_rejects: float, lock: int | None,
) -> Manifest:  # fmt: skip
    store = destination.store
    old = destination.old_manifest()
    found = reservation.read(store)
    if found is None:
        raise OptionError(
            f"{store.url}: no part of this pack was begun here; run all parts first: the same command with "
            "--part I/N instead of --commit, I from 0 to N-1"
        )
    compare(store.url, agreement(job, tasks, destination, record, old, found.parts), found)
    job, first, second = _passes(job, tasks, destination)
    done = _finished(destination, old, first, tasks)
    if missing := {task.number for task in tasks} - done.keys():
        raise missing_parts(store.url, tasks, found.parts, missing)
    # From now on copies of parts that are still at work write nothing more.
    granted, continued = reservation.reserve(store, found, True, lock is not None)
    if not continued:
        store.delete(reservation.NAME)  # it was gone, and may not come back
        raise CommitError(f"{store.url}: another commit has just ended here; commit again")
    destination.hold(granted)
    job = replace(job, first_shard=next_number(old), claim=destination.claim, tag=destination.tag)
    read = written = [done[number] for number in sorted(done)]
    if second != first:
        job, todo = _gathering(job, done)
        written = runner.results(job, second, todo, True, () if lock is None else (lock,))
    elif wrong := destination.wrong(read):
        error = missing_parts(store.url, tasks, found.parts, wrong)
        discard(store, store.list(), destination.claim.plan, error.parts, wrong)
        raise error
    outcome = Outcome(read, written, unread, beside)
    return commit_outcome(job, old, outcome, destination, record, max_rejects, "--commit")


def _passes(job: Job, tasks: Sequence[Task], destination: Destination) -> tuple[Job, str, str]:
    """The pack, and the names of the passes that read the input and that write shards: the same, or two."""
    if job.shuffle is None:
        return job, "task", "task"
    from shardstream.packing.shuffle_passes import scattering

    job, (first, second) = scattering(job, tasks, destination, shared=True)
    return job, first, second


def _gathering(job: Job, done: Mapping[int, Result]) -> tuple[Job, list[Bucket]]:
    """The second pass of a shuffle, from the results of the first one."""
    from shardstream.packing.shuffle_passes import gathering

    return gathering(job, [done[number] for number in sorted(done)])


def _finished(
    destination: Destination, old: Manifest | None, stage: str, tasks: Sequence[Task]
) -> dict[int, Result]:
    """The results of those tasks of a pass over the input that are done."""
    sizes = {task.number: input_bytes(task) for task in tasks}
    done: dict[int, Result] = {}
    for _ in range(2):  # a part that ends may fold its receipts while they are read
        destination.look(old)
        found = destination.finished(stage)[0]
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
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in found[:most]]
    return ",".join(shown) + (",..." if len(found) > most else "")
