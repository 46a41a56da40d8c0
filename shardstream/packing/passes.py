"""The passes of a pack over its tasks, the checks behind them, and the commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shardstream.errors import SourceError
from shardstream.format.manifest import Manifest
from shardstream.packing.build_manifest import build_manifest, next_number, warn_of_many_fields
from shardstream.packing.columns import check_columns
from shardstream.packing.destination import Destination
from shardstream.packing.job import Job
from shardstream.packing.outcome import Outcome
from shardstream.packing.result import Result
from shardstream.packing.runner import Runner
from shardstream.packing.sources import Task

__all__ = ["commit_outcome", "run_passes"]


def run_passes(
    job: Job, tasks: Sequence[Task], unread: list[tuple[str, str]], beside: list[tuple[str, str]],
    destination: Destination, runner: Runner,
    record: dict[str, Any], resume: bool, lock: int | None, max_rejects: float, shared: bool,
) -> Manifest:  # fmt: skip
    """Read and write the samples, shuffled or not; check what came of it, and commit it.

    Args:
        job: The pack.
        tasks: Its tasks.
        unread: The files that could not be planned: where, and why.
        beside: The files that are no input: where, and why.
        destination: Where it is committed.
        runner: Runs the tasks.
        record: The provenance of the pack.
        resume: Whether to continue an unfinished pack.
        lock: The lock of this machine, or None.
        max_rejects: The share of samples that may be rejected.
        shared: Whether tasks may run on several machines.

    Returns:
        The manifest.
    """
    old = destination.old_manifest()
    continued = destination.begin(old, resume, lock is not None)
    job = replace(job, first_shard=next_number(old), claim=destination.claim, tag=destination.tag)
    destination.put_plan(tasks)
    inherited = () if lock is None else (lock,)
    read, written = _results(job, tasks, runner, destination, continued, inherited, shared)
    outcome = Outcome(read, written, unread, beside)
    return commit_outcome(job, old, outcome, destination, record, max_rejects, "--resume")


def commit_outcome(
    job: Job, old: Manifest | None, outcome: Outcome, destination: Destination, record: dict[str, Any],
    max_rejects: float, again: str,
) -> Manifest:  # fmt: skip
    """Check what came of all tasks, and commit it.

    Args:
        job: The pack.
        old: The manifest that it adds to, or None.
        outcome: What came of it.
        destination: Where it is committed.
        record: The provenance of the pack.
        max_rejects: The share of samples that may be rejected.
        again: The option with which the same command commits it, if more may be rejected.

    Returns:
        The manifest.
    """
    destination.write_rejects(outcome.rejects, outcome.rejected - len(outcome.rejects), outcome.skips)
    if not outcome.shards and old is None:
        destination.clean()
        why = f" {outcome.rejected:,} were rejected. {outcome.reasons(destination.rejects)}"
        raise SourceError(
            f"no samples were found in the sources; nothing was packed.{why if outcome.rejected else ''}"
        )
    outcome.check_whole()
    outcome.check_keep()
    outcome.check_rejects(max_rejects, destination.rejects, again)
    manifest = build_manifest(job, old, outcome.shards, {**record, **outcome.record()})
    check_columns(manifest, record["options"].get("keep"))
    destination.clear(manifest)
    destination.commit(old, manifest)
    warn_of_many_fields(manifest)
    destination.clean()
    return manifest


def _results(
    job: Job,
    tasks: Sequence[Task],
    runner: Runner,
    destination: Destination,
    continued: bool,
    inherited: Sequence[int],
    shared: bool,
) -> tuple[list[Result], list[Result]]:
    """The results of the tasks that read the input, and of those that wrote shards: often the same."""
    if job.shuffle is None:
        read = runner.results(job, "task", tasks, continued, inherited)
        return read, read
    from shardstream.packing.shuffle_passes import gathering, scattering

    # What parts have read of a shuffle waits in the store.
    job, stages = scattering(job, tasks, destination, shared or destination.parts > 0)
    read = runner.results(job, stages[0], tasks, continued, inherited)
    job, gathered = gathering(job, read)
    return read, runner.results(job, stages[1], gathered, continued, inherited)
