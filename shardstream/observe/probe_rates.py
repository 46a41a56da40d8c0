"""What one core does with a dataset's own frames: decompression alone, and all that follows it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import Any

from shardstream.dataset import contents_of
from shardstream.format import frames
from shardstream.observe.bench_work import Work
from shardstream.observe.probe_limits import Limits
from shardstream.observe.probe_profile import Rates
from shardstream.order.shuffle import Shuffle
from shardstream.read.dataset_blocks import STREAMS
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache

__all__ = ["measure_rates"]

_SHARDS, _FRAMES = 4, 32  # that are decompressed
_DECOMPRESSING = 0.5  # seconds of a core
_WARM = 0.25  # of the seconds are for the first pass from memory, in which threads and tables are made
_AHEAD = 32 << 20  # bytes of look-ahead: what is ahead when the time is over was read in vain


def measure_rates(work: Work, limits: Limits) -> Rates | None:
    """The rates of a dataset; None if the limits end it before anything is known.

    Some batches are read into memory, and then made again and again from there. The processor time of that
    is measured, and so the number does not depend on what else runs on the machine.
    """
    reader = work.opened()
    manifest = reader.manifest
    if not manifest.samples:
        limits.note("rates of the cores: the dataset has no samples")
        return None
    chosen = frames_to_read(reader)
    frame_bytes = sum(reader.manifest.shards[shard].bytes // max(1, reader.manifest.shards[shard].frames)
                      for shard, _ in chosen)  # fmt: skip
    if not limits.take(frame_bytes):
        limits.note("rates of the cores: the bytes or seconds did not suffice")
        return None
    codec, per_byte = _decompression(reader, chosen, limits)
    return _pipeline(work, reader, codec, per_byte, limits)


def frames_to_read(reader: DatasetReader) -> list[tuple[int, int]]:
    """(shard, frame) of some frames of a few shards."""
    draw = random.Random(0)
    shards = [number for number, shard in enumerate(reader.manifest.shards) if shard.frames]
    found = [
        (shard, frame)
        for shard in draw.sample(shards, min(_SHARDS, len(shards)))
        for frame in range(reader.manifest.shards[shard].frames)
    ]
    return draw.sample(found, min(_FRAMES, len(found)))


def _decompression(
    reader: DatasetReader, chosen: list[tuple[int, int]], limits: Limits
) -> tuple[str, float]:
    """(codec, seconds of a core per byte after decompression); 0 if nothing is decompressed frame by frame."""
    codecs = {reader.manifest.shards[shard].codec for shard, _ in chosen}
    codec = "mixed" if len(codecs) > 1 else codecs.pop()
    stored = [
        (bytes(reader.stored_frame(shard, frame)), int(reader.index(shard).frame_raw_size[frame]))
        for shard, frame in chosen
        if reader.manifest.shards[shard].codec == "zstd"
    ]
    if not stored:
        if codec in STREAMS:
            limits.note("decompression: the shards are whole compressed streams, whose rate was not measured")
        return codec, 0.0
    for data, size in stored:
        frames.decompress("zstd", data, size, "")
    began, done = time.thread_time(), 0
    while time.thread_time() - began < _DECOMPRESSING and not limits.over:
        for data, size in stored:
            frames.decompress("zstd", data, size, "")
            done += size
    return codec, (time.thread_time() - began) / max(1, done)


@dataclass
class _Pass:
    samples: int
    seconds: float  # of cores, of this process
    consumer: float  # of a core, of this thread
    decompressed: int  # bytes


def _pipeline(
    work: Work, reader: DatasetReader, codec: str, per_byte: float, limits: Limits
) -> Rates | None:
    manifest = reader.manifest
    # A part of a large dataset: few lanes, or the first batches would open the frames of all of them.
    whole = manifest.bytes + manifest.raw_bytes <= limits.bytes_left
    cache = Cache(ram=2 * max(limits.bytes_left + manifest.raw_bytes if whole else 4 * limits.bytes_left, 64 << 20))
    small = replace(work, prefetch=min(work.prefetch or _AHEAD, _AHEAD))
    dataset = small.dataset(cache)
    if not whole and small.seed is not None:
        contents_of(dataset).shuffle = Shuffle(small.seed, lanes=8)
    counters = contents_of(dataset).reader.counters  # type: ignore[attr-defined]
    batches = _fill(small, dataset, counters, limits)
    if not batches:
        limits.note("rates of the cores: no batch came within the limits")
        return None
    after: dict[str, Any] = contents_of(dataset).reader.counters  # type: ignore[attr-defined]
    _run(small, dataset, batches)
    passes: list[_Pass] = []
    while not passes or not limits.over:
        passes.append(_run(small, dataset, batches))
    samples = sum(one.samples for one in passes)
    seconds = sum(one.seconds - per_byte * one.decompressed for one in passes)
    requests, came = int(after.get("requests", 0)), int(after.get("remote_bytes", 0))
    return Rates(
        {
            "batch": work.batch, "seq_len": work.seq_len, "image_size": work.image_size,
            "decode": work.decode, "seed": work.seed,
        },
        codec,
        1 / per_byte if per_byte else 0.0,
        max(0.0, seconds) / samples,
        sum(one.consumer for one in passes) / samples,
        samples,
        manifest.bytes / items(dataset),
        manifest.raw_bytes / items(dataset),
        came // requests if requests else 0,
    )  # fmt: skip


def items(dataset: Any) -> int:
    """How many samples, or blocks of tokens, the dataset has, at least 1."""
    return max(1, int(contents_of(dataset).total))


def _fill(work: Work, dataset: Any, before: dict[str, Any], limits: Limits) -> int:
    """Read batches into memory; returns how many."""
    loader = work.loader(dataset)
    loader.set_epoch(0)
    read = contents_of(dataset).reader  # type: ignore[attr-defined]
    seen = int(before.get("remote_bytes", 0))
    count, until, most = 0, limits.seconds_left / 2, limits.bytes_left - 2 * _AHEAD
    began, taken = time.monotonic(), 0
    iterator = iter(loader)
    try:
        for count, _ in enumerate(iterator, start=1):  # noqa: B007 - how far it came
            taken = int(read.counters.get("remote_bytes", 0)) - seen
            if time.monotonic() - began > until or taken > max(0, most):
                break
    finally:
        iterator.close()  # type: ignore[attr-defined]
    limits.count(int(read.counters.get("remote_bytes", 0)) - seen)
    return count


def _run(work: Work, dataset: Any, batches: int) -> _Pass:
    """Make the same batches again, from memory."""
    loader = work.loader(dataset)
    loader.set_epoch(0)
    samples, left = 0, batches
    cpu, consumer = time.process_time(), time.thread_time()
    iterator = iter(loader)
    try:
        for _ in iterator:
            left -= 1
            if not left:
                break
    finally:
        iterator.close()  # type: ignore[attr-defined]
    stats = loader.stats()
    samples = int(stats["samples"])
    return _Pass(
        samples, time.process_time() - cpu, time.thread_time() - consumer, int(stats["decompressed_bytes"])
    )
