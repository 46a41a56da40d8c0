"""The passes of a shuffle: how many buckets there are, where samples wait, and what the second pass does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from shardstream.errors import OptionError
from shardstream.packing.destination import Destination
from shardstream.packing.disk_shuffle import FINE, joined
from shardstream.packing.job import Bucket, Buckets, Job, input_bytes
from shardstream.packing.result import Result
from shardstream.packing.sources import Task
from shardstream.packing.sources.calls import Calls

__all__ = ["MOST_ON_DISK", "MOST_SINGLE", "gathering", "grouped", "scattering"]

# Pieces that the second pass reads one by one from a local disk: for more, a level of groups costs less.
MOST_ON_DISK = 1 << 18
# Pieces in the store, each of which is two requests: for fewer, each shard is a task of its own.
MOST_SINGLE = 1 << 12
_MOST_HELD = 1 << 30  # bytes in which the packer holds where regions lie; it grows with the tasks ** 1.5


def grouped(tasks: int, buckets: int, shared: bool) -> int:
    """How many buckets are a group; 0 if the samples can wait on a local disk without groups.

    Args:
        tasks: How many tasks the first pass has.
        buckets: How many buckets there are.
        shared: Whether the passes run on several machines, so that the samples must wait in the store.
    """
    pieces = tasks * buckets
    if pieces <= MOST_ON_DISK and not shared:
        return 0
    return 1 if pieces <= MOST_SINGLE else math.isqrt(buckets - 1) + 1


def _held(tasks: int, buckets: int, group: int) -> int:
    """The bytes of memory in which the packer holds where the regions of all objects lie."""
    return tasks * (-(-buckets // group) + 1) * 8


def _too_much(tasks: int, buckets: int, shard_size: int | None) -> str:
    """Why a shuffle holds too much. `shard_size` is None if it does not decide how many tasks there are."""
    what = f"a shuffle of {tasks:,} tasks into {buckets:,} buckets holds more than 1 GiB in memory"
    if shard_size is None:
        return f"{what}; give fewer functions, each of which makes more samples"
    cut = 1
    while True:
        cut *= 2
        fewer = -(-buckets // cut)
        if _held(-(-tasks // cut), fewer, math.isqrt(fewer) + 1) <= _MOST_HELD:
            break
    size = shard_size * cut
    shown = f"{size >> 30}GiB" if size % (1 << 30) == 0 else f"{-(-size >> 20)}MiB"
    return f"{what}; give a larger shard_size: {shown} or more"


def scattering(
    job: Job, tasks: Sequence[Task], destination: Destination, shared: bool = False
) -> tuple[Job, tuple[str, str]]:
    """What the first pass has to know.

    Args:
        job: The pack.
        tasks: Its tasks.
        destination: Where it is committed.
        shared: See `grouped`.

    Returns:
        The pack for the first pass, and the names of both passes. They say where samples wait, so that an
        unfinished pack whose samples wait elsewhere is not taken for this one.

    Raises:
        OptionError: The packer would hold too much in memory; a larger shard_size mends it.
    """
    known = not isinstance(job.source, Calls)
    size = sum(map(input_bytes, tasks))
    buckets = max(1, -(-size // job.layout.shard_size)) if known else FINE
    group = grouped(len(tasks), buckets, shared)
    if group and _held(len(tasks), buckets, group) > _MOST_HELD:
        raise OptionError(_too_much(len(tasks), buckets, job.layout.shard_size if known else None))
    folder: str | None = destination.spill_dir
    if group:  # the samples of a group may lie beside a local dataset, and else in a temporary folder
        folder = None if shared else destination.store.local_path(".spill")
    job = replace(job, spill_dir=folder, buckets=buckets, group=group)
    return job, (("scatter", "gather") if group else ("spill", "task"))


def gathering(job: Job, read: Sequence[Result]) -> tuple[Job, list[Bucket]]:
    """The second pass.

    Args:
        job: The pack, as it was for the first pass.
        read: The results of the first pass in the order of its tasks.

    Returns:
        The pack for the second pass, and its tasks.
    """
    spans = [(bucket, bucket + 1) for bucket in range(job.buckets)]
    if isinstance(job.source, Calls):
        spans = joined(sum(each.sample_bytes or 0 for each in read), job.layout.shard_size)
    if not job.group:
        return job, [Bucket(number, len(read), span) for number, span in enumerate(spans)]
    from shardstream.packing.store_shuffle import all_bounds

    bounds = all_bounds((end for each in read for end in each.spilled), -(-job.buckets // job.group))
    tasks: list[Bucket] = []
    numbered = itertools.groupby(enumerate(spans), lambda each: each[1][0] // job.group)
    for _, members in numbered:
        some = list(members)
        whole = some[0][1][0], some[-1][1][1]
        regions = slice(whole[0] // job.group, -(-whole[1] // job.group) + 1)
        tasks.append(
            Buckets(
                len(tasks), len(read), whole, some[0][0], tuple(span for _, span in some), bounds[:, regions]
            )
        )
    return replace(job, spilled=tuple(len(each.spilled) for each in read)), tasks
