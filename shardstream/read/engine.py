"""The read engine: chunks of the order in, built batches out, in order.

    plan (consumer) -> fetch, decompress frames (pool) -> build batches (pool) -> deliver (consumer)

The consumer plans ahead each time it takes a batch, so that no thread outlives its iterator: when
the generator is closed or dropped, what is queued is cancelled and the threads end.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import StorageError
from shardstream.format.index import ShardIndex
from shardstream.format.manifest import Manifest
from shardstream.read.prefetch import FrameId, Frames

__all__ = ["Budget", "Chunk", "RawSample", "Reader", "Stats", "stream"]

T = TypeVar("T")
RawSample = tuple[str, dict[str, bytes]]

# How many batches may be built ahead: decoded batches can be many times larger than their frames.
_DEPTH = 16


class Reader(Protocol):
    """What the engine needs from a dataset."""

    @property
    def manifest(self) -> Manifest: ...
    def index(self, shard: int, /) -> ShardIndex: ...
    def frame(self, shard: int, frame: int, /) -> memoryview: ...


@dataclass(frozen=True)
class Budget:
    """Limits: bytes of look-ahead, bytes of idle frames, threads, seconds to wait."""

    prefetch: int = 256 << 20
    keep: int = 1 << 30
    threads: int = field(default_factory=lambda: min(16, os.cpu_count() or 1))
    deadline: float = 600.0


@dataclass
class Stats:
    """Counters of one loader over its life."""

    batches: int = 0
    samples: int = 0
    frames: int = 0
    bytes_read: int = 0
    wait_seconds: float = 0.0
    queue_depth: int = 0


@dataclass(frozen=True)
class Chunk:
    """The samples of one batch: shard and number within the shard, both int64 [B]."""

    shards: NDArray[np.int64]
    samples: NDArray[np.int64]


@dataclass
class _Pending(Generic[T]):
    future: Future[T]
    frames: list[FrameId]
    samples: int
    bytes: int


def stream(
    reader: Reader,
    chunks: Iterable[Chunk],
    build: Callable[[int, list[RawSample]], T],
    fields: tuple[str, ...] | None = None,
    budget: Budget | None = None,
    stats: Stats | None = None,
) -> Generator[T, None, None]:
    """Build each chunk's samples in background threads and yield the results in order.

    `build(number, samples)` gets the number of the chunk. Errors of any stage are raised here, in
    the place of the batch that they belong to.
    """
    budget, stats = budget or Budget(), stats or Stats()
    fetchers = ThreadPoolExecutor(budget.threads, "shardstream-fetch")
    builders = ThreadPoolExecutor(budget.threads, "shardstream-build")
    frames = Frames(reader.frame, fetchers, budget.keep)
    pending: deque[_Pending[T]] = deque()
    work = _Work(reader, fields, build, budget.deadline)
    waiting = enumerate(chunks)
    ahead = 0
    try:
        while True:
            while len(pending) < _DEPTH and (not pending or frames.in_use + ahead < budget.prefetch):
                following = next(waiting, None)
                if following is None:
                    break
                item = _submit(work, frames, builders, *following)
                pending.append(item)
                ahead += item.bytes
            if not pending:
                return
            stats.frames, stats.bytes_read = _moved(frames, stats)
            stats.queue_depth = sum(item.future.done() for item in pending)
            head = pending.popleft()
            started = time.monotonic()
            try:
                built = head.future.result(budget.deadline)
            except FutureTimeout as error:
                if head.future.done():
                    raise  # a TimeoutError of the stage itself, not of this wait
                raise StorageError(
                    f"{reader.manifest.fingerprint}: a batch was not ready after "
                    f"{budget.deadline:.0f} s; is the storage answering?"
                ) from error
            finally:
                stats.wait_seconds += time.monotonic() - started
            ahead -= head.bytes
            for frame in head.frames:
                frames.release(frame)
            stats.batches += 1
            stats.samples += head.samples
            yield built
    finally:
        fetchers.shutdown(wait=False, cancel_futures=True)
        builders.shutdown(wait=False, cancel_futures=True)


def _moved(frames: Frames, stats: Stats) -> tuple[int, int]:
    """The totals after adding what was fetched since the last call."""
    totals = stats.frames + frames.fetched, stats.bytes_read + frames.fetched_bytes
    frames.fetched = frames.fetched_bytes = 0
    return totals


class _Work(Generic[T]):
    """What a builder thread does with one chunk."""

    def __init__(
        self,
        reader: Reader,
        fields: tuple[str, ...] | None,
        build: Callable[[int, list[RawSample]], T],
        deadline: float,
    ) -> None:
        self.reader, self.build, self.deadline = reader, build, deadline
        names = [info.name for info in reader.manifest.fields]
        self.columns = [(c, n) for c, n in enumerate(names) if fields is None or n in fields]

    def __call__(
        self,
        number: int,
        chunk: Chunk,
        places: NDArray[np.int64],
        futures: dict[FrameId, Future[memoryview]],
    ) -> T:
        samples: list[RawSample] = []
        for shard, sample, frame in zip(
            chunk.shards.tolist(), chunk.samples.tolist(), places.tolist(), strict=True
        ):
            future = futures[shard, frame]
            try:
                data = future.result(self.deadline)
            except FutureTimeout as error:
                if future.done():
                    raise
                where = f"shard {self.reader.manifest.shards[shard].url}, frame {frame}"
                raise StorageError(f"{where}: not read after {self.deadline:.0f} s") from error
            samples.append(self.cut(self.reader.index(shard), sample, data))
        return self.build(number, samples)

    def cut(self, index: ShardIndex, sample: int, data: memoryview) -> RawSample:
        """The key and the fields of one sample, copied out of its frame."""
        offsets, sizes = index.field_offset[sample], index.field_size[sample]
        found: dict[str, bytes] = {}
        for column, name in self.columns:
            size = int(sizes[column])
            if size >= 0:
                start = int(offsets[column])
                found[name] = bytes(data[start : start + size])
        return index.key(sample), found


def _submit(
    work: _Work[T], frames: Frames, builders: ThreadPoolExecutor, number: int, chunk: Chunk
) -> _Pending[T]:
    """Hold the frames that the chunk needs, by first use, and queue its build."""
    places = np.empty(len(chunk.samples), np.int64)
    volume = 0
    for shard in np.unique(chunk.shards).tolist():
        mine = chunk.shards == shard
        index = work.reader.index(shard)
        samples = chunk.samples[mine]
        first = np.asarray(index.frame_first).astype(np.int64)
        places[mine] = np.searchsorted(first, samples, side="right") - 1
        volume += int(np.maximum(np.asarray(index.field_size)[samples], 0).sum())
    reads: dict[FrameId, int] = {}
    for key in zip(chunk.shards.tolist(), places.tolist(), strict=True):
        reads[key] = reads.get(key, 0) + 1
    futures: dict[FrameId, Future[memoryview]] = {}
    for (shard, frame), count in reads.items():
        index = work.reader.index(shard)
        held = int(index.frame_first[frame + 1]) - int(index.frame_first[frame])
        size = int(index.frame_raw_size[frame])
        futures[shard, frame] = frames.use((shard, frame), size, held, count)
    future = builders.submit(work, number, chunk, places, futures)
    return _Pending(future, list(futures), len(chunk.samples), volume)
