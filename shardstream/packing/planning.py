"""What a pack will do: its tasks, and the compression that suits the data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardstream.errors import CorruptionError, SourceError, StorageError
from shardstream.format.kinds import COMPRESSED, extension
from shardstream.packing.blocks import read_samples
from shardstream.packing.engines.exits import exits_are_errors
from shardstream.packing.job import Job
from shardstream.packing.keys import Rule, with_prefixes
from shardstream.packing.layout import Codec
from shardstream.packing.planned import planned, whole
from shardstream.packing.sources import Reject, Sample, Task
from shardstream.packing.sources.base import tasks_of
from shardstream.packing.sources.streams import names_compressed
from shardstream.storage.inputs import FileInfo
from shardstream.storage.spool import SpoolError, gathered
from shardstream.storage.store import redact
from shardstream.storage.transport.failures import is_unreachable

_PEEK = 16  # samples that are looked at to see whether the data is compressed already
_EXPANDED = 4  # what text becomes that was compressed, about
_UNREADABLE = (SourceError, StorageError, CorruptionError)


@dataclass(frozen=True)
class Plan:
    """What a pack would do. A dry run returns it.

    Args:
        format: The name of the format, such as "jsonl".
        files: How many files there are.
        tasks: How many tasks the files are cut into. Each task makes at least one shard.
        input_bytes: The bytes of all files.
        compression: "zstd" or "none".
        keys: What is taken for the keys, for people.
        shard_size: Bytes of samples in a shard.
    """

    format: str
    files: int
    tasks: int
    input_bytes: int
    compression: str
    keys: str = ""
    shard_size: int = 0


def expected_bytes(files: Sequence[FileInfo]) -> int:
    """About how many bytes the samples of files have.

    A file whose name says that it is compressed, such as x.jsonl.gz, counts four times. Formats that compress
    inside, such as Parquet, count as they are.
    """
    return sum(file.size * (_EXPANDED if names_compressed(file.url) else 1) for file in files)


def plan_tasks(
    job: Job, files: Sequence[FileInfo], unread: list[tuple[str, str]], keys: Rule | None
) -> Sequence[Task]:
    """The tasks of a pack. Those of very many files are not in memory; see `planned`.

    Args:
        job: The pack.
        files: The files of the input.
        unread: With on_error="skip" the files that cannot even be planned are added here: where, and why.
        keys: The rule of the keys.

    Raises:
        SourceError, StorageError: A file cannot be read, and `job.on_error` is "raise".
    """
    try:
        return planned(with_prefixes(tasks_of(job.source, files, job.layout.shard_size), keys))
    except _UNREADABLE as error:
        if job.on_error == "raise" or is_unreachable(error) or isinstance(error, SpoolError):
            raise
        bad = {file: why for file in files if (why := _problem(job, file))}
        if len(bad) in (0, len(files)):
            raise
    unread += [(redact(file.url), why) for file, why in bad.items()]
    left = gathered((file for file in files if file not in bad), tuple, FileInfo._make)
    return planned(with_prefixes(tasks_of(job.source, left, job.layout.shard_size), keys))


def _problem(job: Job, file: FileInfo) -> str:
    try:
        job.source.plan([file], job.layout.shard_size)
    except SpoolError:
        raise
    except _UNREADABLE as error:
        return str(error)
    return ""


def _first(job: Job, task: Task) -> Iterator[Sample | Reject]:
    """The first samples of a task, or what its source has for a look at them."""
    peek = getattr(job.source, "peek", None)
    if peek is None:
        yield from read_samples(job, task)
        return
    # What is wrong with the input is said when it is read.
    with contextlib.suppress(SourceError, CorruptionError):
        yield from peek(task)


def suitable_codec(job: Job, tasks: Sequence[Task]) -> Codec:
    """ "none" if most bytes of the first samples are compressed already, else "zstd"."""
    if job.kind == "tokens" or not tasks:
        return "zstd"
    packed = other = 0
    with exits_are_errors():
        task = whole(tasks[0], job.dest, job.storage_options, None)
        first = [sample for _, sample in zip(range(_PEEK), _first(job, task), strict=False)]
    for sample in first:
        if isinstance(sample, Reject):
            continue
        for name, data in sample.fields.items():
            if extension(name) in COMPRESSED:
                packed += len(data)
            else:
                other += len(data)
    return "none" if packed > other else "zstd"
