"""What one core does with a dataset's own frames: decompression alone, and all that follows it."""

from __future__ import annotations

import copy
import random
import time
from dataclasses import replace
from typing import Any

from shardstream.dataset import contents_of
from shardstream.dataset.sample_contents import SampleContents
from shardstream.errors import OptionError
from shardstream.format import frames
from shardstream.format.manifest import Manifest
from shardstream.observe.bench_work import Work
from shardstream.observe.probe_costs import Measured, Pass, Passes
from shardstream.observe.probe_limits import Limits
from shardstream.observe.probe_load import busy_seconds
from shardstream.read.dataset_blocks import STREAMS
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache

__all__ = ["measure_rates"]

_SHARDS, _FRAMES = 4, 32  # that are decompressed
_DECOMPRESSING = 0.5  # seconds of a core
_LOOK = 8  # after so many batches the limits are looked at
_AHEAD = 32 << 20  # bytes of look-ahead
_PATIENCE = 4  # times the seconds of this part: an epoch that is cut off would look expensive
_FIRST = 8 << 20  # bytes of the samples that are read first
_LEAST = 4  # times the samples that are read first
_GROW = 0.7  # the part of the time that is planned for
_RAM = 128 << 20  # bytes of memory for all but the frames
_PASSES = 8  # from memory
_STARTS = 3  # from memory
_COLD = 3  # epochs from the store: the work of one differs from run to run
_LEAST_COLD = 2  # of them, also if the time does not suffice: the first one is the slowest


def measure_rates(work: Work, limits: Limits) -> Measured | None:
    """What the rates of a dataset follow from; None if the limits end it before anything is known.

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
    # On a busy machine half a second of a core may take all of the time.
    until = time.monotonic() + limits.seconds_left / 4
    began, done = time.thread_time(), 0
    while not done or (time.thread_time() - began < _DECOMPRESSING and time.monotonic() < until):
        for data, size in stored:
            frames.decompress("zstd", data, size, "")
            done += size
    return codec, (time.thread_time() - began) / max(1, done)


def _pipeline(
    work: Work, reader: DatasetReader, codec: str, per_byte: float, limits: Limits
) -> Measured | None:
    manifest, began = reader.manifest, limits.seconds_left
    # What is ahead when an epoch ends early was read in vain.
    work = replace(work, prefetch=min(work.prefetch or _AHEAD, _AHEAD))
    each = max(1.0, manifest.bytes / manifest.samples)
    # Modules are imported before anything is measured.
    count = min(manifest.samples, max(work.batch, int(_FIRST / each)))
    found = _epoch(work, _part_of(work, None, count, manifest.samples), limits)
    # The first batch opens a frame of each lane.
    frame = manifest.bytes / max(1, sum(shard.frames for shard in manifest.shards))
    lanes = 1 if work.shuffle is None else min(work.batch, work.shuffle.lanes_for(1))
    all_fits = lanes * frame < limits.bytes_left / 4
    first = work.dataset() if all_fits else _part_of(work, None, count, manifest.samples)
    # Without look-ahead, and so without work for batches that are not taken.
    alone = replace(work, prefetch=1)
    whole_first = _epoch(alone, first, limits, batches=1)
    dataset: Any = None
    passes: list[Pass] = []  # of the same samples
    while count < manifest.samples or not passes:
        # Whole epochs of so many samples as the limits allow: what is opened for them is used, too.
        by_time = int(count * _GROW * max(limits.seconds_left - began / 3, began / 3) / max(found.wall, 1e-3))
        by_time = max(by_time, 0 if passes else _LEAST * count)  # or opening would be most of it
        more = min(manifest.samples, by_time, int(limits.bytes_left / each / _COLD))
        if passes and (more < 2 * count or found.wall > began / 8):
            break
        count = max(count, more)
        dataset = _in_memory(work, count, manifest)
        found = _epoch(work, dataset, limits, patience=_PATIENCE * began)
        passes = [found]
    while (
        len(passes) < _COLD
        and limits.bytes_left > count * each
        and (limits.seconds_left - began / 3 > found.wall or len(passes) < _LEAST_COLD)
        and found.samples == passes[0].samples
    ):
        dataset = _in_memory(work, count, manifest)
        found = _epoch(work, dataset, limits, patience=_PATIENCE * began)
        passes.append(found)
    cold = _middle(passes)
    if not cold.samples:
        limits.note("rates of the cores: no batch came within the limits")
        return None
    # Opening some shards takes less than opening all of them: this first batch belongs to these epochs.
    store_first = _epoch(alone, _part_of(work, None, count, manifest.samples), limits, batches=1)
    counters: dict[str, Any] = contents_of(dataset).reader.counters  # type: ignore[attr-defined]
    requests, came = int(counters.get("requests", 0)), int(counters.get("remote_bytes", 0))
    warm, start = _from_memory(work, dataset, limits), _start_from_memory(work, dataset, limits)
    plain = warm
    if isinstance(contents_of(dataset), SampleContents) and work.decode:
        # What decoders take, they take without Python's lock, several threads at a time.
        plain = _from_memory(work, _undecoded(dataset), limits)
    return Measured(
        work,
        manifest,
        items(work.dataset()),
        codec,
        per_byte,
        Passes(warm, start, cold, store_first, whole_first),
        plain,
        came // requests if requests and contents_of(dataset).remote else 0,
        limits,
    )


def _in_memory(work: Work, count: int, manifest: Manifest) -> Any:
    """The first samples, which stay in memory when they have come."""
    size = int(count * manifest.bytes / manifest.samples)
    return _part_of(work, Cache(ram=4 * size + _RAM), count, manifest.samples)


def _middle(passes: list[Pass]) -> Pass:
    """The pass with the median of the seconds; only those that came as far as the first one."""
    found = sorted((one for one in passes if one.samples == passes[0].samples), key=lambda one: one.seconds)
    return found[(len(found) - 1) // 2]


def _from_memory(work: Work, dataset: Any, limits: Limits) -> Pass:
    """The median epoch of some, by seconds of cores; without the first one, which touches fresh memory."""
    until = time.monotonic() + max(0.1, limits.seconds_left / 2)
    found = [_epoch(work, dataset, limits, patience=limits.seconds_left + 1.0)]
    while time.monotonic() < until and len(found) < _PASSES:
        found.append(_epoch(work, dataset, limits))
    # The time may have ended the last one before what it opened was used.
    whole = [one for one in found if one.samples == found[0].samples]
    return _middle(whole[1:] or whole)


def _start_from_memory(work: Work, dataset: Any, limits: Limits) -> Pass:
    """The median of some first batches: what an epoch costs before its samples count."""
    alone = replace(work, prefetch=1)
    return _middle([_epoch(alone, dataset, limits, batches=1) for _ in range(_STARTS)])


def _undecoded(dataset: Any) -> Any:
    """The same samples from the same memory, with fields as they are stored."""
    found = copy.copy(dataset)
    found._contents = contents_of(dataset).decoding(False)  # type: ignore[attr-defined]  # noqa: SLF001
    return found


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


def _epoch(
    work: Work, dataset: Any, limits: Limits, batches: int | None = None, patience: float = 0.0
) -> Pass:
    """Take the batches of the first epoch: all, or so many; fewer, if the time is over.

    Args:
        work: Makes the loader.
        dataset: What is read.
        limits: When it ends.
        batches: How many, or None.
        patience: Seconds that it may take, even if the time is over.
    """
    began, cpu, consumer, busy = time.monotonic(), time.process_time(), time.thread_time(), busy_seconds()
    loader = work.loader(dataset)
    reader: DatasetReader = contents_of(dataset).reader  # type: ignore[attr-defined]
    came = int(reader.counters.get("remote_bytes", 0))
    loader.set_epoch(0)
    iterator = iter(loader)
    try:
        for number, _ in enumerate(iterator, start=1):
            if number == batches:
                break
            if number % _LOOK == 0 and limits.over and time.monotonic() - began > patience:
                break
    finally:
        iterator.close()  # type: ignore[attr-defined]
    stats = loader.stats()
    # Not the loader's counters, which may begin at another number.
    fetched = max(0, int(reader.counters.get("remote_bytes", 0)) - came)
    limits.count(fetched)
    return Pass(
        int(stats["samples"]), time.monotonic() - began, time.process_time() - cpu,
        time.thread_time() - consumer, busy_seconds() - busy, fetched, int(stats["decompressed_bytes"]),
    )  # fmt: skip
