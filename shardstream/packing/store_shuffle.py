"""The shuffle of `disk_shuffle` through the store of the dataset: for very many tasks, or several machines.

With T tasks and B buckets the second pass of `disk_shuffle` reads T x B pieces. Here buckets are grouped.
Each task of the first pass writes one object, in which the samples of a group are one region. Each task of
the second pass reads the regions of one group, by range, and parts them into buckets on a local disk. If a
group has sqrt(B) buckets, there are T x sqrt(B) pieces, which are sqrt(B) times as large.

The draws are those of `disk_shuffle`, and so is the order of the samples before a bucket is permuted. So the
result has the same bytes.

An object is one frame of zstd for each group, none for an empty one. A frame holds blocks: the number of a
bucket (4 bytes), the length of its samples (8 bytes), its samples; numbers are little endian. Where the
regions end stands in the receipts of the tasks, and goes to the second pass with its tasks: so a piece is one
request. A task with more samples than it may hold in memory writes several objects.
"""

from __future__ import annotations

import bisect
import contextlib
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from shardstream.errors import StorageError
from shardstream.packing.buckets import Draws, Spilled, permuted, split
from shardstream.packing.open_shard import Output
from shardstream.packing.piles import Piles
from shardstream.packing.sources import Sample
from shardstream.packing.spilled import FOLDER, spill_name
from shardstream.storage.store import Store
from shardstream.storage.transport.backends import Data

__all__ = ["FOLDER", "Objects", "all_bounds", "gather", "scatter"]

_LEVEL = 1  # of zstd: the samples are read once
_IN_FLIGHT = 64 << 20  # bytes of regions that are on their way
_BLOCK = struct.Struct("<IQ")
_AGAIN = (
    "the same command with --resume, or the parts again, make it anew; if the error stays, empty the target"
)

Span = tuple[int, int]
Bounds = npt.NDArray[np.uint64]


class Objects(NamedTuple):
    """What the first pass has left in the store.

    Args:
        counts: How many objects each task has.
        group: How many buckets are a group.
        tag: Stands in the names of the objects.
    """

    counts: Sequence[int]
    group: int
    tag: str = ""

    def names(self) -> list[str]:
        """The names of all objects, in the order of the tasks."""
        return [
            spill_name(task, place, self.tag)
            for task, count in enumerate(self.counts)
            for place in range(count)
        ]


def scatter(
    samples: Iterable[Sample],
    store: Output,
    seed: int,
    task: int,
    buckets: int,
    shard_size: int,
    group: int,
    tag: str = "",
) -> tuple[Spilled, list[bytes]]:
    """Pass one over the samples of one task.

    Args:
        samples: The samples.
        store: The store of the dataset.
        seed, task, buckets, shard_size: See `buckets.Draws`.
        group: How many buckets are a group.
        tag: Stands in the names of the objects.

    Returns:
        What was written; and of each object where its regions end, as `all_bounds` takes it.

    Raises:
        StorageError: An object cannot be written.
    """
    written: list[bytes] = []
    regions = -(-buckets // group)
    compress = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress

    def flush(records: dict[int, list[bytes]]) -> None:
        frames, sizes = [], np.zeros(regions, "<u8")
        for region, members in groupby(sorted(records), lambda bucket: bucket // group):
            pieces: list[bytes] = []
            for bucket in members:
                block = b"".join(records.pop(bucket))
                pieces += (_BLOCK.pack(bucket, len(block)), block)
            frames.append(compress(b"".join(pieces)))
            sizes[region] = len(frames[-1])
        if frames:
            store.write(spill_name(task, len(written), tag), *frames)
            written.append(np.cumsum(sizes, dtype="<u8").tobytes())

    draws = Draws(seed, task, buckets, shard_size, flush)
    for sample in samples:
        draws.add(sample)
    draws.flush()
    return draws.written, written


def all_bounds(ends: Iterable[bytes], regions: int) -> Bounds:
    """Where the regions of all objects begin and end, [objects, regions + 1].

    Args:
        ends: What `scatter` returned of each object, in the order of the tasks.
        regions: How many regions an object has.
    """
    found = np.frombuffer(b"".join(ends), "<u8").reshape(-1, regions)
    return np.concatenate((np.zeros((len(found), 1), "<u8"), found), axis=1)


def gather(
    store: Store,
    objects: Objects,
    bounds: Bounds,
    seed: int,
    first: int,
    spans: Sequence[Span],
    scratch: str | None,
) -> Iterator[tuple[int, Iterator[Sample]]]:
    """Pass two: the samples of consecutive shards, those of each one permuted.

    Args:
        store: The store of the dataset.
        objects: What the first pass has left there.
        bounds: Where the regions of these shards begin and end in each object: columns of `all_bounds`.
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
    with contextlib.closing(Piles(len(spans), scratch)) as piles:
        for raw in _regions(store, objects, bounds):
            at = 0
            while at + head <= len(raw):
                bucket, size = unpack(raw, at)
                at += head + size
                if begin <= bucket < end:
                    pile = bucket - begin if simple else bisect.bisect_right(starts, bucket) - 1
                    piles.add(pile, raw[at - size : at])
            if at != len(raw):
                raise StorageError(f"{store.where(FOLDER)}: a block of samples is cut off; {_AGAIN}")
        for pile in range(len(spans)):
            yield first + pile, _shard(piles, pile, seed, first + pile)


def _shard(piles: Piles, pile: int, seed: int, number: int) -> Iterator[Sample]:
    """The samples of one shard, which are in memory only while they are taken."""
    records = [record for block in piles.blocks(pile) for record in split(block)]
    yield from permuted(records, seed, number)


def _regions(store: Store, objects: Objects, bounds: Bounds) -> Iterator[bytes]:
    """The content of some regions of all objects, in the order of the tasks."""
    decompress = zstandard.ZstdDecompressor().decompress
    pieces = [
        piece for piece in zip(objects.names(), bounds.tolist(), strict=True) if piece[1][-1] > piece[1][0]
    ]
    for (name, places), data in zip(pieces, _ahead(store, pieces), strict=True):
        view = memoryview(data)
        for start, stop in pairwise(places):
            if stop == start:
                continue
            try:
                raw = decompress(view[start - places[0] : stop - places[0]])
            except zstandard.ZstdError as error:
                raise StorageError(f"{store.where(name)} is damaged: {error}; {_AGAIN}") from error
            yield raw


def _read(store: Store, name: str, places: Sequence[int]) -> Data:
    try:
        return store.read_range(name, places[0], places[-1] - places[0])
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise StorageError(f"{store.where(name)} for the shuffle is missing; {_AGAIN}") from error
        raise


def _ahead(store: Store, pieces: Sequence[tuple[str, list[int]]]) -> Iterator[Data]:
    """The bytes of all pieces in order: of a remote store many at a time, about 64 MiB of them."""
    if store.local_path("") is not None:
        for name, places in pieces:
            yield _read(store, name, places)
        return
    coming: deque[tuple[Future[Data], int]] = deque()
    left = iter(pieces)
    in_flight = 0
    pool = ThreadPoolExecutor(store.concurrency, "shardstream-shuffle")
    try:
        while True:
            while not coming or in_flight < _IN_FLIGHT:
                piece = next(left, None)
                if piece is None:
                    break
                coming.append((pool.submit(_read, store, *piece), piece[1][-1] - piece[1][0]))
                in_flight += coming[-1][1]
            if not coming:
                return
            future, size = coming.popleft()
            yield future.result()
            in_flight -= size
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
