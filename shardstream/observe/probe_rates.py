"""What one core does with a dataset's own frames: decompression alone, and all that follows it."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

from shardstream.dataset import contents_of
from shardstream.errors import OptionError
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
_LOOK = 8  # after so many batches the limits are looked at
_OFTEN = 0.02  # seconds between looks at what threads wait for
_FIRST = 8 << 20  # bytes of the samples that are read first
_GROW = 0.7  # the part of the time that is planned for
_RAM = 128 << 20  # bytes of memory for all but the frames
_PASSES = 8  # from memory


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


def _decompression(reader: DatasetReader, chosen: list[tuple[int, int]], limits: Limits) -> tuple[str, float]:
    """(codec, seconds of a core per byte after decompression); 0 seconds if frames are not compressed."""
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
    wall: float  # seconds
    seconds: float  # of cores, of this process
    wanted: float  # of cores, that its threads used or waited for because other processes had them
    consumer: float  # of a core, of this thread


def _pipeline(work: Work, reader: DatasetReader, codec: str, per_byte: float, limits: Limits) -> Rates | None:
    manifest, began = reader.manifest, limits.seconds_left
    each = max(1.0, manifest.bytes / manifest.samples)
    # Modules are imported, and threads and connections made, before anything is measured.
    count = min(manifest.samples, max(work.batch, int(_FIRST / each)))
    found = _epoch(work, _part_of(work, None, count, manifest.samples), limits)
    limits.count(int(count * each))
    dataset: Any = None
    cold: _Pass | None = None
    while count < manifest.samples or cold is None:
        # Whole epochs of so many samples as the limits allow: what is opened for them is used, too.
        by_time = int(count * _GROW * max(0.0, limits.seconds_left - began / 3) / max(found.wall, 1e-3))
        more = min(manifest.samples, by_time, int(limits.bytes_left / each))
        if cold is not None and (more < 2 * count or found.wall > began / 8):
            break
        count = max(count, more)
        dataset = _part_of(work, Cache(ram=4 * int(count * each) + _RAM), count, manifest.samples)
        limits.count(int(count * each))
        found = cold = _epoch(work, dataset, limits)
    if cold is None or not cold.samples:
        limits.note("rates of the cores: no batch came within the limits")
        return None
    counters: dict[str, Any] = contents_of(dataset).reader.counters  # type: ignore[attr-defined]
    passes = [_epoch(work, dataset, limits)]
    while not limits.over and len(passes) < _PASSES:
        passes.append(_epoch(work, dataset, limits))
    # The time may have ended the last one before what it opened was used. In the first one, memory is touched
    # for the first time.
    whole_ones = [one for one in passes if one.samples == passes[0].samples]
    passes = whole_ones[1:] or whole_ones
    samples = max(1, sum(one.samples for one in passes))
    seconds = sum(one.seconds for one in passes)
    requests, came = int(counters.get("requests", 0)), int(counters.get("remote_bytes", 0))
    whole = items(work.dataset())
    shape = ("batch", "seq_len", "image_size", "decode", "seed", "lanes", "window")
    return Rates(
        {name: getattr(work, name) for name in shape},
        codec,
        1 / per_byte if per_byte else 0.0,
        cold.seconds / cold.samples,
        seconds / samples,
        sum(one.consumer for one in passes) / samples,
        min(float(cores()), max(1.0, sum(one.wanted for one in passes) / sum(one.wall for one in passes))),
        samples,
        manifest.bytes / whole,
        manifest.raw_bytes / whole,
        came // requests if requests and contents_of(dataset).remote else 0,
    )


def _part_of(work: Work, cache: Cache | None, count: int, total: int) -> Any:
    """A dataset of the first samples, or the whole one."""
    dataset = work.dataset(cache)
    if count >= total:
        return dataset
    try:
        return dataset.subset(numbers=range(count))
    except OptionError:  # too few tokens for a block
        return dataset


def items(dataset: Any) -> int:
    """How many samples, or blocks of tokens, the dataset has, at least 1."""
    return max(1, int(contents_of(dataset).total))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _epoch(work: Work, dataset: Any, limits: Limits) -> _Pass:
    """Take the batches of the first epoch; fewer, if the time is over."""
    began, cpu, consumer, delayed = time.monotonic(), time.process_time(), time.thread_time(), _delayed()
    loader = work.loader(dataset)
    loader.set_epoch(0)
    batches, delay, look = 0, 0.0, began
    iterator = iter(loader)
    try:
        for _ in iterator:
            batches += 1
            if limits.over and batches % _LOOK == 0:
                break
            if time.monotonic() > look:  # threads end with the iterator, and what they waited with them
                delay, look = max(delay, _delayed() - delayed), time.monotonic() + _OFTEN
    finally:
        iterator.close()  # type: ignore[attr-defined]
    used = time.process_time() - cpu
    return _Pass(
        int(loader.stats()["samples"]), time.monotonic() - began, used, used + delay,
        time.thread_time() - consumer,
    )  # fmt: skip


def _delayed() -> float:
    """Seconds in which threads of this process waited for a core that others had; 0 if it is not known."""
    total = 0
    for thread in threading.enumerate():
        name = f"/proc/self/task/{thread.native_id}/schedstat"
        with contextlib.suppress(OSError, ValueError, IndexError), open(name, encoding="ascii") as file:
            total += int(file.read().split()[1])
    return total / 1e9
