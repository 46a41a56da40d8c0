"""The work of one task of a pack: from its slice of the input to shards in the store.

Without numpy a worker process starts in half the time. So modules that need numpy are imported where they are
used.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from shardstream.counters.layout import stage
from shardstream.counters.page import begin
from shardstream.counters.recorder import span
from shardstream.errors import SourceError
from shardstream.packing.blocks import alone, one_by_one, read_blocks, takes_blocks
from shardstream.packing.job import Bucket, Buckets, Job, input_bytes, stage_of
from shardstream.packing.open_shard import Output
from shardstream.packing.planned import whole
from shardstream.packing.receipts import write_receipt
from shardstream.packing.result import Result
from shardstream.packing.shard_names import tag_of
from shardstream.packing.shard_puts import ShardPuts
from shardstream.packing.sources import Reject, Sample, Task
from shardstream.packing.sources.base import TOKENS, token_dtype
from shardstream.packing.sources.block import Block
from shardstream.packing.tally import Tally, total
from shardstream.packing.writer import SampleWriter, TokenWriter
from shardstream.storage.store import Store

if TYPE_CHECKING:
    from shardstream.packing.tokenize import Tokenizer, Tokens

_TASK = stage("task")
_TOKENIZE_BATCH = 64  # texts
_MAX_REJECTS_LISTED = 1_000_000


def run_task(job: Job, task: Task | Bucket) -> Result:
    """Do one task, and leave its receipt.

    Args:
        job: The pack.
        task: A slice of the input, or a bucket.

    Raises:
        CommitError: It is another packer's turn at the target. Nowhere else can the task be done either.
        SourceError: A sample is bad, and `job.on_error` is "raise".
    """
    begin("pack", job.shown)
    started = time.monotonic()
    if isinstance(task, Task):
        task = whole(task, job.dest, job.storage_options, job.claim)
    result = _done(job, task)
    if job.claim is not None:
        store = Store.open(job.dest, job.storage_options)
        write_receipt(store, job.claim, stage_of(job, task), result)
    span(_TASK, started, time.monotonic())
    return result


def _done(job: Job, task: Task | Bucket) -> Result:
    result = Result(task.number, given=Tally())
    if isinstance(task, Bucket):
        for number, samples in _gathered(job, task):
            _write(job, task, samples, result, number)
        return result
    accepted = _accepted(job, read_blocks(job, task), result)
    if job.limit is not None:
        accepted = itertools.islice(accepted, job.limit)
    if job.shuffle is None:
        _write(job, task, accepted, result, task.number)
    else:
        _scatter(job, task.number, alone(accepted), job.shuffle, result)
    result.input_bytes = input_bytes(task)
    return result


def _scatter(job: Job, number: int, samples: Iterable[Sample], seed: int, result: Result) -> None:
    """The first pass of a shuffle."""
    if job.group:
        from shardstream.packing import store_shuffle

        store = Store.open(job.dest, job.storage_options)
        puts = None if job.claim is None else ShardPuts(store, job.claim, number, "scatter")
        (result.samples, result.sample_bytes), result.spilled = store_shuffle.scatter(
            samples,
            puts or store,
            seed,
            number,
            job.buckets,
            job.layout.shard_size,
            job.group,
            _spill_tag(job),
        )
        result.versions |= {} if puts is None else puts.versions
        return
    from shardstream.packing import disk_shuffle

    result.samples, result.sample_bytes = disk_shuffle.scatter(
        samples, _spill_dir(job), seed, number, job.buckets, job.layout.shard_size
    )


def _gathered(job: Job, task: Bucket) -> Iterator[tuple[int, Iterable[Sample]]]:
    """The second pass of a shuffle: the number of each shard, or of its first one, and its samples."""
    seed = job.shuffle or 0
    if isinstance(task, Buckets):
        from shardstream.packing import store_shuffle

        store = Store.open(job.dest, job.storage_options)
        objects = store_shuffle.Objects(job.spilled, job.group, _spill_tag(job))
        assert task.bounds is not None
        yield from store_shuffle.gather(
            store, objects, task.bounds, seed, task.first, task.spans, job.spill_dir
        )
        return
    from shardstream.packing import disk_shuffle

    yield task.number, disk_shuffle.gather(_spill_dir(job), seed, task.number, task.spills, task.span)


def _spill_tag(job: Job) -> str:
    """What stands in the names of spilled objects, so that another plan has other names."""
    return "" if job.claim is None else tag_of(job.claim.plan)


def _spill_dir(job: Job) -> str:
    assert job.spill_dir is not None
    return job.spill_dir


def _accepted(job: Job, found: Iterable[Block | Sample | Reject], result: Result) -> Iterator[Block | Sample]:
    given = _given(result)
    for item in found:
        if isinstance(item, Block):
            result.unknown = []
            item.count(given)
            yield item
        elif isinstance(item, Reject) and item.harmless:
            result.skipped[item.reason] = result.skipped.get(item.reason, 0) + 1
            if len(result.skips) < _MAX_REJECTS_LISTED:
                result.skips.append((item.where, item.reason))
        elif isinstance(item, Reject):
            _reject(job, item, item.reason, result)
        else:
            for name, count in item.counts.items():
                result.counts[name] = result.counts.get(name, 0) + count
            if result.unknown != []:
                before = item.missing if result.unknown is None else result.unknown
                result.unknown = [name for name in before if name in item.missing]
            given.add(item.key, item.fields)
            yield item


def _given(result: Result) -> Tally:
    assert result.given is not None
    return result.given


def _reject(
    job: Job, item: Sample | Reject, reason: str, result: Result, cause: Exception | None = None
) -> None:
    if job.on_error == "raise":
        raise SourceError(f"{item.where}: {reason}. To leave such samples out: --on-error skip") from cause
    result.rejected += 1
    if len(result.rejects) < _MAX_REJECTS_LISTED:
        result.rejects.append((item.where, reason))
    if isinstance(item, Sample):
        _given(result).remove(item.key, item.fields)


def _write(
    job: Job, task: Task | Bucket, samples: Iterable[Block | Sample], result: Result, number: int
) -> None:
    """Write the shards of one number, and add them to the result of the task."""
    store = Store.open(job.dest, job.storage_options)
    puts = None if job.claim is None else ShardPuts(store, job.claim, result.number, stage_of(job, task))
    output: Output = puts or store
    number += job.first_shard
    writer: SampleWriter
    dtype = token_dtype(job.source)
    if dtype is not None:
        import numpy as np

        there = TokenWriter(output, number, job.layout, np.dtype(dtype), tag=job.tag)
        writer = there
        for sample in alone(samples):
            try:
                ids = np.frombuffer(sample.fields[TOKENS], np.dtype(dtype).newbyteorder("<"))
                there.add_tokens(sample.key, ids, sample.columns)
            except SourceError as error:
                _reject(job, sample, str(error), result, error)
    elif job.tokenizer is None:
        writer = SampleWriter(output, number, job.layout, tag=job.tag)
        for sample in one_by_one(writer, samples) if takes_blocks(job) else alone(samples):
            try:
                writer.add(sample.key, sample.fields, sample.columns)
            except SourceError as error:
                _reject(job, sample, str(error), result, error)
    else:
        from shardstream.packing.tokenize import load_tokenizer

        tokenizer = load_tokenizer(job.tokenizer)
        dtype_of = tokenizer.dtype(job.eos)
        token_writer = TokenWriter(output, number, job.layout, dtype_of, tag=job.tag)
        writer = token_writer
        _write_tokens(job, tokenizer, token_writer, iter(alone(samples)), result)
    result.shards += writer.close()
    result.sample_bytes = (result.sample_bytes or 0) + writer.sample_bytes
    result.stored = total([result.stored or Tally(), writer.stored])
    result.versions |= {} if puts is None else puts.versions
    result.samples = sum(shard.samples for shard in result.shards)


def _write_tokens(
    job: Job, tokenizer: Tokenizer, writer: TokenWriter, samples: Iterator[Sample], result: Result
) -> None:
    import numpy as np

    dtype, given = tokenizer.dtype(job.eos), _given(result)
    end = np.array([] if job.eos is None else [job.eos], dtype)
    while batch := list(itertools.islice(samples, _TOKENIZE_BATCH)):
        texts, tokenized = [], []
        for sample in batch:
            try:
                texts.append(sample.fields["txt"].decode())
                tokenized.append(sample)
            except KeyError:
                _reject(job, sample, "no text (field txt) to tokenize", result)
            except UnicodeDecodeError as error:
                _reject(job, sample, f"the text is not UTF-8 ({error})", result, error)
        for sample, tokens in zip(tokenized, _encoded(tokenizer, texts), strict=True):
            try:
                if isinstance(tokens, SourceError):
                    raise tokens
                document = np.concatenate((tokens.astype(dtype, copy=False), end))
                writer.add_tokens(sample.key, document, sample.columns)
            except SourceError as error:
                _reject(job, sample, str(error), result, error)
            else:
                given.remove(sample.key, sample.fields)  # from now on the sample is its tokens
                given.add(sample.key, {TOKENS: document.tobytes()})


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> Iterator[Tokens | SourceError]:
    """The tokens of each text, or why it has none."""
    try:
        yield from tokenizer.encode_batch(texts)
        return
    except SourceError as error:
        if len(texts) == 1:
            yield error
            return
    for text in texts:  # to find the one at fault
        yield from _encoded(tokenizer, [text])
