"""What the machine can do: a batched gather, zstd alone, memory copies. options["ceiling"] names which."""

from __future__ import annotations

import glob
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus, Digest
from benchmarks.peers import ours
from benchmarks.peers.common import Options, token_payloads
from benchmarks.peers.common import expected as as_it_is
from benchmarks.peers.decompressing import decompressing
from shardstream.read.opening import open_manifest
from shardstream.storage.store import Store

PACKAGES = ("zstandard",)
_CHUNK = 1 << 20
_THREADS = 32  # that fetch ranges
_RANGE = 8 << 20  # bytes


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """zstd needs frames of the corpus: ours. The others read the corpus as it is."""
    if options["ceiling"] == "gather":
        os.makedirs(dest)
    else:
        ours.write(corpus, dest, options)


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """An iterable of batches, or of pieces of work that stand for a number of samples."""
    if options["ceiling"] in ("ranges", "frames"):
        return {"ranges": _Ranges, "frames": _Frames}[options["ceiling"]](corpus, options)
    kind = {"gather": _Gather, "zstd": _Zstd, "copy": _Copy, "jpeg": _Jpeg}[options["ceiling"]]
    return kind(corpus, dest, options["batch"])


class _Gather:
    """np.memmap, one fancy index per batch, converted to int64 as a model wants it."""

    def __init__(self, corpus: Corpus, _dest: str, batch: int) -> None:
        self._rows, self._batch = corpus.rows(), batch
        self._random = np.random.default_rng(1)

    def __iter__(self) -> Iterator[Any]:
        import torch

        rows = self._rows
        order = self._random.permutation(len(rows))
        for start in range(0, len(order), self._batch):
            yield torch.from_numpy(rows[order[start : start + self._batch]].astype(np.int64))


class _Pieces:
    """Pieces of work on all cores, each worth its share of the samples."""

    def __init__(self, corpus: Corpus, dest: str, _batch: int) -> None:
        self._corpus, self._dest = corpus, dest
        self._local = threading.local()

    def jobs(self) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def work(self, *job: Any) -> int:
        """Does a piece and gives its bytes."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[int, float]]:
        jobs = self.jobs()
        threads = os.cpu_count() or 1
        total = sum(job[-1] for job in jobs)
        with ThreadPoolExecutor(threads) as pool:
            pending: deque[Future[int]] = deque()
            for job in jobs:
                pending.append(pool.submit(self.work, *job))
                if len(pending) > 4 * threads:
                    yield self._share(pending.popleft().result(), total)
            while pending:
                yield self._share(pending.popleft().result(), total)

    def _share(self, size: int, total: int) -> tuple[int, float]:
        return size, size * self._corpus.count / total

    def buffer(self, size: int) -> memoryview:
        """A thread's own memory, used again and again."""
        found = getattr(self._local, "buffer", None)
        if found is None or len(found) < size:
            found = self._local.buffer = memoryview(bytearray(max(size, 2 * _CHUNK)))
        return found[:size]


class _Zstd(_Pieces):
    """zstd decompression of our frames, mapped, into a buffer per thread."""

    def jobs(self) -> list[tuple[Any, ...]]:
        from shardstream.read.reader import DatasetReader

        reader = DatasetReader.open(self._dest)
        self._frames, found = [], []
        for shard in range(len(reader.manifest.shards)):
            index, mapped = reader.index(shard), reader.local.mapped(shard)
            cells = zip(
                index.frame_offset.tolist(), index.frame_size.tolist(), index.frame_raw_size.tolist(),
                strict=True,
            )  # fmt: skip
            for at, size, raw in cells:
                found.append((len(self._frames), raw))
                self._frames.append(mapped[at : at + size])
        return found

    def work(self, number: int, raw: int) -> int:
        if not hasattr(self._local, "decompress"):
            self._local.decompress = decompressing()
        return int(self._local.decompress(self._frames[number], self.buffer(raw)))


class _Copy(_Pieces):
    """The shards from the page cache into a buffer per thread, a MiB at a time."""

    def jobs(self) -> list[tuple[Any, ...]]:
        found = []
        for path in sorted(glob.glob(os.path.join(self._dest, "*.tar"))):
            size = os.path.getsize(path)
            found += [(path, start, min(_CHUNK, size - start)) for start in range(0, size, _CHUNK)]
        return found

    def work(self, path: str, start: int, size: int) -> int:
        file = os.open(path, os.O_RDONLY)
        try:
            return os.preadv(file, [self.buffer(size)], start)
        finally:
            os.close(file)


class _Jpeg(_Pieces):
    """libjpeg-turbo: JPEGs in memory to pixels, at the scale that random crops of this size allow."""

    def jobs(self) -> list[tuple[Any, ...]]:
        if hasattr(self, "_data"):
            return [(number, len(data)) for number, data in enumerate(self._data)]
        import simplejpeg

        from shardstream.decode import images

        self._data = [Path(path).read_bytes() for path, _ in self._corpus.images()]
        sizes = np.array([simplejpeg.decode_jpeg_header(data)[:2] for data in self._data], np.int64)
        train = images.Train(224)
        cuts, _ = train.cuts(sizes, train.random(0, np.arange(len(sizes))))
        self._scales = [how.scale for how in cuts]
        self._least = [
            (-(-high // s), -(-wide // s))
            for (high, wide), s in zip(sizes.tolist(), self._scales, strict=True)
        ]
        return [(number, len(data)) for number, data in enumerate(self._data)]

    def work(self, number: int, size: int) -> int:
        import simplejpeg

        (high, wide), scale = self._least[number], self._scales[number]
        buffer = self.buffer(3 * high * wide)
        simplejpeg.decode_jpeg(
            self._data[number], min_height=high, min_width=wide, min_factor=scale, buffer=buffer
        )
        return size


class _Ranges:
    """Ranged GETs of 8 MiB of all shards, in threads, through the client that ours uses; nothing is kept."""

    def __init__(self, corpus: Corpus, options: Options) -> None:
        remote, self._corpus = options["remote"], corpus
        self._access = {"key": remote["key"], "secret": remote["secret"], "endpoint_url": remote["endpoint"]}
        self._url = remote["url"]

    def __iter__(self) -> Iterator[tuple[int, float]]:
        store, size = Store.open(self._url, self._access), _RANGE
        shards = open_manifest(store, None).shards
        jobs = [(s.url, at, min(size, s.bytes - at)) for s in shards for at in range(0, s.bytes, size)]
        total = sum(job[2] for job in jobs)
        with ThreadPoolExecutor(_THREADS) as pool:
            for data in pool.map(lambda job: store.read_range(*job), jobs):
                yield len(data), len(data) * self._corpus.count / total


class _Frames(_Ranges):
    """The floor: such ranges, cut at frames; each frame is verified, and copied once into memory of before.

    No order, no cache, no state. The frames come as they lie in the shards, through our client.
    """

    def __iter__(self) -> Iterator[tuple[int, float]]:
        from shardstream.format import frames
        from shardstream.read.reader import DatasetReader

        reader, slabs = DatasetReader.open(self._url, self._access), deque[Any]()
        numbers = range(len(reader.manifest.shards))
        reader.load_indexes(numbers)
        jobs = [(shard, *run) for shard in numbers for run in _runs(reader.index(shard))]

        def work(shard: int, first: int, last: int) -> int:
            index, copied = reader.index(shard), 0
            start, end = (
                int(index.frame_offset[first]),
                int(index.frame_offset[last] + index.frame_size[last]),
            )
            data = memoryview(reader.stored(shard, start, end - start))
            # Of the threads few copy at a time: the memory that was used last is hot in the cache.
            slab = slabs.pop() if slabs else np.empty(2 * _RANGE, np.uint8)
            for frame in range(first, last + 1):
                at, size = int(index.frame_offset[frame]) - start, int(index.frame_size[frame])
                part = data[at : at + size]
                if frames.checksum(part) != int(index.frame_checksum[frame]):
                    raise ValueError(f"frame {frame} of shard {shard} is damaged")
                slab[at : at + size] = np.frombuffer(part, np.uint8)
                copied += size
            slabs.append(slab)
            return copied

        total = sum(int(reader.index(shard).frame_size.sum()) for shard in numbers)
        with ThreadPoolExecutor(_THREADS) as pool:
            for size in pool.map(lambda job: work(*job), jobs):
                yield size, size * self._corpus.count / total


def _runs(index: Any) -> Iterator[tuple[int, int]]:
    """(first, last) of the frames of each range of at most 8 MiB."""
    ends = (index.frame_offset + index.frame_size).tolist()
    first = 0
    for frame, end in enumerate(ends):
        if frame > first and end - int(index.frame_offset[first]) > _RANGE:
            yield first, frame - 1
            first = frame
    yield first, len(ends) - 1


def count(batch: Any) -> float:
    """The samples of a batch, or those that a piece of work stands for."""
    return batch[1] if type(batch) is tuple else len(batch)


def payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """Of a gather the rows; other ceilings deliver sizes alone."""
    if type(batch) is tuple:
        yield bytes(batch[0])
    else:
        yield from token_payloads(corpus, batch)


def expected(corpus: Corpus, dest: str, options: Options) -> dict[str, Any]:
    """Of a gather the corpus, of the others as many pieces of the same sizes."""
    if options["ceiling"] == "gather":
        return as_it_is(corpus, dest, options)
    digest = Digest()
    digest.add(bytes(job[-1]) for job in loader(corpus, dest, options).jobs())
    return digest.facts()


def total(corpus: Corpus, dest: str, options: Options) -> int:
    """The samples that an epoch stands for."""
    return corpus.count
