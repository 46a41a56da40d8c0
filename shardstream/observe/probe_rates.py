"""What one core does with a dataset's own frames: decompression alone, and all that follows it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from shardstream.dataset import contents_of
from shardstream.format import frames
from shardstream.observe.bench_work import Work
from shardstream.observe.probe_limits import Limits
from shardstream.observe.probe_profile import Rates
from shardstream.read.dataset_blocks import STREAMS
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache

__all__ = ["measure_rates"]

_SHARDS, _FRAMES = 4, 32  # that are decompressed
_DECOMPRESSING = 0.5  # seconds of a core
_LANES = 8  # of a part of a large dataset
_LOOK = 8  # after so many batches the limits are looked at
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
    batches: int
    samples: int
    wall: float  # seconds
    seconds: float  # of cores, of this process
    consumer: float  # of a core, of this thread


def _pipeline(work: Work, reader: DatasetReader, codec: str, per_byte: float, limits: Limits) -> Rates | None:
    manifest = reader.manifest
    # A part of a large dataset: few lanes, or the first batches would open the frames of all of them.
    whole = manifest.bytes <= limits.bytes_left - 2 * _AHEAD
    small = replace(work, prefetch=min(work.prefetch or _AHEAD, _AHEAD))
    if not whole and small.seed is not None:
        small = replace(small, lanes=min(small.lanes or _LANES, _LANES))
    began = limits.seconds_left
    # Modules are imported, and threads and connections made, before anything is measured.
    _cold(small, small.dataset(), limits, 0.1 * began, _AHEAD)
    cache = Cache(ram=2 * max(limits.bytes_left + _AHEAD, 64 << 20))
    # With the time until the dataset is open: it is there in each epoch's first batches, too.
    dataset = small.dataset(cache)
    cold = _cold(small, dataset, limits, 0.5 * began, limits.bytes_left - _AHEAD)
    if cold is None:
        limits.note("rates of the cores: no batch came within the limits")
        return None
    counters: dict[str, Any] = contents_of(dataset).reader.counters  # type: ignore[attr-defined]
    _taken(small, dataset, cold.batches)
    passes: list[_Pass] = []
    while not passes or not limits.over:
        passes.append(_taken(small, dataset, cold.batches))
    samples = sum(one.samples for one in passes)
    seconds = sum(one.seconds for one in passes)
    requests, came = int(counters.get("requests", 0)), int(counters.get("remote_bytes", 0))
    shape = ("batch", "seq_len", "image_size", "decode", "seed", "lanes", "window")
    return Rates(
        {name: getattr(work, name) for name in shape},
        codec,
        1 / per_byte if per_byte else 0.0,
        cold.seconds / cold.samples,
        seconds / samples,
        sum(one.consumer for one in passes) / samples,
        min(float(cores()), max(1.0, seconds / sum(one.wall for one in passes))),
        samples,
        manifest.bytes / items(dataset),
        manifest.raw_bytes / items(dataset),
        came // requests if requests else 0,
    )


def items(dataset: Any) -> int:
    """How many samples, or blocks of tokens, the dataset has, at least 1."""
    return max(1, int(contents_of(dataset).total))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cold(work: Work, dataset: Any, limits: Limits, seconds: float, most: int) -> _Pass | None:
    """The first batches of an epoch, for so many seconds and bytes; None if there is none."""
    reader = contents_of(dataset).reader  # type: ignore[attr-defined]
    until, before = time.monotonic() + seconds, int(reader.counters.get("remote_bytes", 0))

    def enough() -> bool:
        return time.monotonic() > until or int(reader.counters.get("remote_bytes", 0)) - before > most

    found = _taken(work, dataset, None, enough)
    limits.count(int(reader.counters.get("remote_bytes", 0)) - before)
    return found if found.samples else None


def _taken(work: Work, dataset: Any, most: int | None, enough: Callable[[], bool] | None = None) -> _Pass:
    """Take batches of the first epoch: so many, or until it is enough."""
    began, cpu, consumer = time.monotonic(), time.process_time(), time.thread_time()
    loader = work.loader(dataset)
    loader.set_epoch(0)
    batches = 0
    iterator = iter(loader)
    try:
        for _ in iterator:
            batches += 1
            if batches == most or (enough is not None and batches % _LOOK == 1 and enough()):
                break
    finally:
        iterator.close()  # type: ignore[attr-defined]
    return _Pass(
        batches, int(loader.stats()["samples"]), time.monotonic() - began,
        time.process_time() - cpu, time.thread_time() - consumer,
    )  # fmt: skip
