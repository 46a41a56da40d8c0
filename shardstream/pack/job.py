"""What a worker does: one task of a pack, from its slice of the input to shards in the store.

A worker starts in half the time where it loads no numpy: what needs it is imported where it is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from shardstream.errors import SourceError
from shardstream.format.manifest import ShardInfo
from shardstream.pack.sources import Reject, Sample, Source, Task
from shardstream.pack.writer import Layout, SampleWriter, TokenWriter
from shardstream.storage.remote import Store

if TYPE_CHECKING:
    from shardstream.pack.tokenize import Tokenizer

_TOKENIZE_BATCH = 64
_MAX_REJECTS_KEPT = 1_000_000


class Result(msgspec.Struct):
    """What one task made; its receipt is this, as JSON, in the store."""

    number: int
    shards: list[ShardInfo] = []
    samples: int = 0
    input_bytes: int = 0
    rejects: list[tuple[str, str]] = []
    counts: dict[str, int] = {}


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know of a pack; travels to it by pickle."""

    source: Source
    dest: str
    layout: Layout
    first_shard: int = 0
    tokenizer: str | None = None
    eos: int | None = None
    limit: int | None = None
    on_error: str = "raise"
    shuffle: int | None = None
    spill_dir: str | None = None
    buckets: int = 0
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Bucket:
    """A task of the second pass of a shuffle: gather one bucket from the spills of all tasks."""

    number: int
    spills: int


def input_bytes(task: Task) -> int:
    """The bytes of input that a task reads."""
    return sum(span.end - span.start for span in task.files)


def run(job: Job, task: Task | Bucket) -> Result:
    """Do one task. Rejected samples raise SourceError, or are listed, as the job says."""
    result = Result(task.number)
    if isinstance(task, Bucket):
        from shardstream.pack import spill

        samples: Iterable[Sample] = spill.gather(_spill_dir(job), job.shuffle or 0, task.number, task.spills)
        _write(job, samples, result)
        return result
    accepted = _accepted(job, job.source.read(task), result)
    if job.limit is not None:
        accepted = itertools.islice(accepted, job.limit)
    if job.shuffle is not None:
        from shardstream.pack import spill

        result.samples = spill.scatter(
            accepted, _spill_dir(job), job.shuffle, task.number, job.buckets, job.layout.shard_size
        )
    else:
        _write(job, accepted, result)
    result.input_bytes = input_bytes(task)
    return result


def _spill_dir(job: Job) -> str:
    assert job.spill_dir is not None
    return job.spill_dir


def _accepted(job: Job, found: Iterable[Sample | Reject], result: Result) -> Iterator[Sample]:
    for item in found:
        if isinstance(item, Reject):
            _reject(job, item.where, item.reason, result)
        else:
            for name, count in item.counts.items():
                result.counts[name] = result.counts.get(name, 0) + count
            yield item


def _reject(job: Job, where: str, reason: str, result: Result, cause: Exception | None = None) -> None:
    if job.on_error == "raise":
        raise SourceError(f"{where}: {reason}. To leave such samples out: --on-error skip") from cause
    if len(result.rejects) < _MAX_REJECTS_KEPT:
        result.rejects.append((where, reason))


def _write(job: Job, samples: Iterable[Sample], result: Result) -> None:
    store = Store.open(job.dest, job.storage_options)
    number = job.first_shard + result.number
    writer: SampleWriter
    if job.tokenizer is None:
        writer = SampleWriter(store, number, job.layout)
        for sample in samples:
            try:
                writer.add(sample.key, sample.fields)
            except SourceError as error:
                _reject(job, sample.where, str(error), result, error)
    else:
        from shardstream.pack.tokenize import load_tokenizer

        tokenizer = load_tokenizer(job.tokenizer)
        token_writer = TokenWriter(store, number, job.layout, tokenizer.dtype(job.eos))
        writer = token_writer
        _write_tokens(job, tokenizer, token_writer, iter(samples), result)
    result.shards = writer.close()
    result.samples = sum(shard.samples for shard in result.shards)


def _write_tokens(
    job: Job, tokenizer: Tokenizer, writer: TokenWriter, samples: Iterator[Sample], result: Result
) -> None:
    import numpy as np

    dtype = tokenizer.dtype(job.eos)
    end = np.array([] if job.eos is None else [job.eos], dtype)
    while batch := list(itertools.islice(samples, _TOKENIZE_BATCH)):
        texts, kept = [], []
        for sample in batch:
            try:
                texts.append(sample.fields["txt"].decode())
                kept.append(sample)
            except KeyError:
                _reject(job, sample.where, "no text (field txt) to tokenize", result)
            except UnicodeDecodeError as error:
                _reject(job, sample.where, f"the text is not UTF-8 ({error})", result, error)
        for sample, tokens in zip(kept, tokenizer.encode_batch(texts), strict=True):
            try:
                writer.add_tokens(sample.key, np.concatenate((tokens.astype(dtype, copy=False), end)))
            except SourceError as error:
                _reject(job, sample.where, str(error), result, error)
