"""The shuffle of `disk_shuffle` through the store of the dataset: for very many tasks, or several machines.

With T tasks and B buckets the second pass of `disk_shuffle` reads T x B pieces. Here buckets are grouped.
Each task of the first pass writes one object, in which the samples of a group are one region. Each task of
the second pass reads the regions of one group, by range, and parts them into buckets on a local disk. If a
group has sqrt(B) buckets, there are T x sqrt(B) pieces, which are sqrt(B) times as large.

The draws are those of `disk_shuffle`, and so is the order of the samples before a bucket is permuted. So the
result has the same bytes.

An object is one frame of zstd for each group, none for an empty one; then R + 1 numbers of 8 bytes, little
endian: where each of the R regions begins, and where the last one ends. A frame holds blocks: the number of a
bucket (4 bytes), the length of its samples (8 bytes), its samples. A task with more samples than it may hold
in memory writes several objects.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, pairwise
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from shardstream.errors import StorageError
from shardstream.packing.buckets import Draws, Spilled, permuted, split, write_grouped
from shardstream.packing.open_shard import Output
from shardstream.packing.sources import Sample
from shardstream.storage.local.reads import read_exactly
from shardstream.storage.store import Store
from shardstream.storage.transport.backends import Data

__all__ = ["FOLDER", "Objects", "gather", "scatter"]

FOLDER = ".spill"
_LEVEL = 1  # of zstd: the samples are read once
_HELD = 128 << 20  # bytes of samples in memory before a task of the second pass writes them to its disk
_IN_FLIGHT = 64 << 20  # bytes of regions that are on their way
_BLOCK = struct.Struct("<IQ")
_AGAIN = "pack again without --resume"

Span = tuple[int, int]


class Objects(NamedTuple):
    """What the first pass has left in the store.

    Args:
        sizes: Of each task the sizes of its objects, in bytes.
        buckets: How many buckets there are.
        group: How many buckets are a group.
        tag: Stands in the names of the objects.
    """

    sizes: Sequence[Sequence[int]]
    buckets: int
    group: int
    tag: str = ""

    @property
    def regions(self) -> int:
        """How many regions an object has."""
        return -(-self.buckets // self.group)


def _name(task: int, place: int, tag: str) -> str:
    return f"{FOLDER}/{task:06d}" + (f"-{place}" if place else "") + tag


def scatter(
    samples: Iterable[Sample],
    store: Output,
    seed: int,
    task: int,
    buckets: int,
    shard_size: int,
    group: int,
    tag: str = "",
) -> tuple[Spilled, list[int]]:
    """Pass one over the samples of one task.

    Args:
        samples: The samples.
        store: The store of the dataset.
        seed, task, buckets, shard_size: See `buckets.Draws`.
        group: How many buckets are a group.
        tag: Stands in the names of the objects.

    Returns:
        What was written, and the sizes of the objects.

    Raises:
        StorageError: An object cannot be written.
    """
    sizes: list[int] = []
    regions = -(-buckets // group)
    compress = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress

    def flush(records: dict[int, list[bytes]]) -> None:
        frames, offsets = [], np.zeros(regions + 1, "<u8")
        for region, members in groupby(sorted(records), lambda bucket: bucket // group):
            pieces: list[bytes] = []
            for bucket in members:
                block = b"".join(records.pop(bucket))
                pieces += (_BLOCK.pack(bucket, len(block)), block)
            frames.append(compress(b"".join(pieces)))
            offsets[region + 1] = len(frames[-1])
        if frames:
            tail = np.cumsum(offsets, dtype="<u8").tobytes()
            store.write(_name(task, len(sizes), tag), *frames, tail)
            sizes.append(sum(map(len, frames)) + len(tail))

    draws = Draws(seed, task, buckets, shard_size, flush)
    for sample in samples:
        draws.add(sample)
    draws.flush()
    return draws.written, sizes


def gather(
    store: Store, objects: Objects, seed: int, first: int, spans: Sequence[Span], scratch: str | None
) -> Iterator[tuple[int, Iterator[Sample]]]:
    """Pass two: the samples of consecutive shards, those of each one permuted.

    Args:
        store: The store of the dataset.
        objects: What the first pass has left there.
        seed: The seed of the shuffle.
        first: The number of the first shard.
        spans: Of each shard the first of its buckets, and the one behind the last.
        scratch: A folder on a local disk, for a file without a name. None: the system's temporary folder.

    Yields:
        The number of each shard, and its samples, which must be taken before the next shard.

    Raises:
        StorageError: The store cannot be read, an object is damaged, or the local disk is full.
    """
    begin, end = spans[0][0], spans[-1][1]
    starts = [start for start, _ in spans]
    simple = end - begin == len(spans)
    unpack, head = _BLOCK.unpack_from, _BLOCK.size
    with contextlib.closing(_Piles(len(spans), scratch)) as piles:
        for raw in _regions(store, objects, begin // objects.group, -(-end // objects.group)):
            at = 0
            while at < len(raw):
                bucket, size = unpack(raw, at)
                at += head + size
                if begin <= bucket < end:
                    pile = bucket - begin if simple else bisect.bisect_right(starts, bucket) - 1
                    piles.add(pile, raw[at - size : at])
            if at != len(raw):
                raise StorageError(f"{store.where(FOLDER)}: a block of samples is cut off; {_AGAIN}")
        for pile in range(len(spans)):
            yield first + pile, _shard(piles, pile, seed, first + pile)


def _shard(piles: _Piles, pile: int, seed: int, number: int) -> Iterator[Sample]:
    """The samples of one shard, which are in memory only while they are taken."""
    records = [record for block in piles.blocks(pile) for record in split(block)]
    yield from permuted(records, seed, number)


class _Piles:
    """Blocks of samples by the shard that they are for: in memory, and in a file if they are many.

    The file has no name, so that it is gone with its process, however that ends.
    """

    def __init__(self, count: int, folder: str | None) -> None:
        self._count, self._folder = count, folder
        self._held: dict[int, list[bytes]] = {}
        self._size = 0
        self._file: IO[bytes] | None = None
        self._bounds: list[npt.NDArray[np.int64]] = []

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()

    def add(self, pile: int, block: bytes) -> None:
        """Put a block behind those of its pile."""
        self._held.setdefault(pile, []).append(block)
        self._size += len(block)
        # One pile is needed as a whole in memory anyway.
        if self._size >= _HELD and self._count > 1:
            self._flush()

    def blocks(self, pile: int) -> Iterator[bytes]:
        """The blocks of a pile, for once."""
        if self._file is not None:
            for bounds in self._bounds:
                start, size = int(bounds[pile]), int(bounds[pile + 1] - bounds[pile])
                if size:
                    yield bytes(read_exactly(self._file.fileno(), start, size, self._where))
        held = self._held.pop(pile, [])
        held.reverse()
        while held:
            yield held.pop()  # it is given up as it is taken: a shard may be large

    @property
    def _where(self) -> str:
        return f"a temporary file in {self._folder or tempfile.gettempdir()}"

    def _flush(self) -> None:
        try:
            if self._file is None:
                if self._folder is not None:
                    os.makedirs(self._folder, mode=0o700, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - until `close`
            self._bounds.append(write_grouped(self._file, self._held, self._count))
            self._file.flush()
        except OSError as error:
            raise StorageError(f"writing {self._where} for the shuffle: {error.strerror}") from error
        self._held.clear()
        self._size = 0


def _regions(store: Store, objects: Objects, first: int, end: int) -> Iterator[bytes]:
    """The content of regions `first` to `end` of all objects, in the order of the tasks."""
    decompress = zstandard.ZstdDecompressor().decompress
    todo = [
        (_name(task, place, objects.tag), size)
        for task, sizes in enumerate(objects.sizes)
        for place, size in enumerate(sizes)
    ]

    def read(name: str, size: int) -> list[Data]:
        return _frames(store, name, size, objects.regions, first, end)

    share = (end - first) / objects.regions  # of an object, on average
    for (name, _), frames in zip(todo, _ahead(store, read, todo, share), strict=True):
        for frame in frames:
            try:
                raw = decompress(frame)
            except zstandard.ZstdError as error:
                raise StorageError(f"{store.where(name)} is damaged: {error}; {_AGAIN}") from error
            yield raw


def _frames(store: Store, name: str, size: int, regions: int, first: int, end: int) -> list[Data]:
    """The frames of some regions of an object, by two ranges: where they are, and they."""
    tail = size - 8 * (regions + 1)
    try:
        places = store.read_range(name, tail + 8 * first, 8 * (end - first + 1))
        bounds = struct.unpack(f"<{end - first + 1}Q", places)
        if list(bounds) != sorted(bounds) or bounds[-1] > tail:
            raise StorageError(f"{store.where(name)} is damaged: its regions overlap; {_AGAIN}")
        data = memoryview(store.read_range(name, bounds[0], bounds[-1] - bounds[0]))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise StorageError(f"{store.where(name)} for the shuffle is missing; {_AGAIN}") from error
        raise
    return [data[start - bounds[0] : stop - bounds[0]] for start, stop in pairwise(bounds) if stop > start]


def _ahead(
    store: Store,
    read: Callable[[str, int], list[Data]],
    todo: Sequence[tuple[str, int]],
    share: float,
) -> Iterator[list[Data]]:
    """The results of `read` in order: of a remote store many at a time, which are about 64 MiB."""
    if store.local_path("") is not None:
        for name, size in todo:
            yield read(name, size)
        return
    coming: deque[tuple[Future[list[Data]], float]] = deque()
    left = iter(todo)
    in_flight = 0.0
    pool = ThreadPoolExecutor(store.concurrency, "shardstream-shuffle")
    try:
        while True:
            while not coming or in_flight < _IN_FLIGHT:
                item = next(left, None)
                if item is None:
                    break
                coming.append((pool.submit(read, *item), item[1] * share))
                in_flight += coming[-1][1]
            if not coming:
                return
            future, cost = coming.popleft()
            yield future.result()
            in_flight -= cost
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
