"""Samples that come one by one, or many at once in blocks of rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shardstream.errors import CorruptionError, SourceError, StorageError
from shardstream.packing.sources import Reject, Sample, Task
from shardstream.packing.sources.block import Block
from shardstream.packing.sources.streams import check_stream
from shardstream.packing.writer import SampleWriter
from shardstream.storage.store import redact
from shardstream.storage.transport.failures import is_unreachable

if TYPE_CHECKING:
    from shardstream.packing.job import Job

__all__ = ["alone", "one_by_one", "read_blocks", "read_samples", "takes_blocks"]

Item = TypeVar("Item")


def takes_blocks(job: Job) -> bool:
    """Whether samples may come many at once: if nobody has to look at each of them."""
    alone = job.limit is not None or job.shuffle is not None or job.kind == "tokens"
    return not alone and _has_blocks(type(job.source))


def _has_blocks(kind: type) -> bool:
    """Whether `read_blocks` of a source gives what its `read` gives.

    A class that is derived from one of ours may have a `read` of its own. Then it is the one that counts.
    """
    for each in kind.__mro__:
        if "read_blocks" in vars(each):
            return True
        if "read" in vars(each):
            return False
    return False


def read_samples(job: Job, task: Task) -> Iterator[Sample | Reject]:
    """The samples of a task. What cannot be read is a Reject if `job.on_error` is "skip", else an error."""
    return _read(job, task, job.source.read)


def read_blocks(job: Job, task: Task) -> Iterator[Block | Sample | Reject]:
    """The samples of a task, as `read_samples`; many at once if the source and the job let them."""
    if not takes_blocks(job):
        return read_samples(job, task)
    source: Any = job.source
    return _read(job, task, source.read_blocks)


def _read(job: Job, task: Task, read: Callable[[Task], Iterable[Item]]) -> Iterator[Item | Reject]:
    if job.on_error == "raise" or getattr(job.source, "is_database", False):
        yield from read(task)
        return
    streams = getattr(job.source, "streams", False)
    # Files that make samples together have the same base.
    for _, together in itertools.groupby(task.files, key=lambda span: span.key_base):
        spans = tuple(together)
        try:
            for span in spans if streams else ():
                if span.start == 0:
                    check_stream(span.url, job.storage_options)
            yield from read(replace(task, files=spans))  # not a planned task: see `whole`
        except (SourceError, StorageError, CorruptionError) as error:
            if is_unreachable(error):  # the store is at fault, not the file
                raise
            where = redact(spans[0].url)
            yield Reject(where, str(error).removeprefix(f"{where}: "))


def alone(samples: Iterable[Block | Sample]) -> Iterable[Sample]:
    """The same samples, of which none is a block: see `takes_blocks`."""
    return cast("Iterable[Sample]", samples)


def one_by_one(writer: SampleWriter, samples: Iterable[Block | Sample]) -> Iterator[Sample]:
    """Write blocks of samples. Returns the samples that have to be written one by one."""
    for item in samples:
        if isinstance(item, Sample):
            yield item
        elif not writer.add_block(item):
            for sample in item.samples():
                assert isinstance(sample, Sample)  # else there would be no block
                yield sample
