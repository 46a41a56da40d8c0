"""The least that shuffled blocks of tokens cost: the same copies, with no order, no checks and no state.

Two threads fill slabs, which are used again and again, and the consumer hands out views of them. With codec
"none" a slab is 64 batches of rows, taken from a map of the corpus. With "zstd" it is the rows of 4 frames of
ours, decompressed and then gathered in random order; rows do not go across frames here. With options["dtype"]
"int64" the tokens are widened; else they stay as they are stored.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus, Digest
from benchmarks.peers import ours
from benchmarks.peers.common import Options, count, token_payloads
from benchmarks.peers.decompressing import decompressing
from shardstream.read.reader import DatasetReader
from shardstream.read.tokens.layout import Layout

__all__ = ["count", "expected", "loader", "payloads", "total", "write"]

PACKAGES = ("zstandard",)
_THREADS, _SLABS = 2, 4
_BATCHES, _FRAMES = 64, 4  # of a slab

payloads = token_payloads


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """The frames of ours; what is not compressed is read from the corpus as it is."""
    if options["codec"] == "zstd":
        ours.write(corpus, dest, options)


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """An iterable of batches."""
    return (_Zstd if options["codec"] == "zstd" else _Map)(corpus, dest, options)


class _Slabs:
    """The threads and the slabs."""

    def __init__(self, corpus: Corpus, dest: str, options: Options) -> None:
        self.corpus, self.dest, self.batch = corpus, dest, options["batch"]
        self.dtype = np.dtype(options.get("dtype", "int64"))
        self.random = np.random.default_rng(1)

    def jobs(self) -> list[Any]:
        """What each slab is filled with, in a new order."""
        raise NotImplementedError

    def rows(self) -> int:
        """How many rows a slab has at most."""
        raise NotImplementedError

    def worker(self) -> Any:
        """A function (job, slab) of one thread; it fills the slab, and returns how many rows that is."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        import torch

        todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
        free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for job in [*self.jobs(), *[None] * _THREADS]:
            todo.put(job)
        if not hasattr(self, "slabs"):
            self.slabs = [np.empty((self.rows(), self.corpus.block), self.dtype) for _ in range(_SLABS)]
        for slab in self.slabs:
            free.put(slab)

        def work() -> None:
            fill = self.worker()
            while (job := todo.get()) is not None:
                slab = free.get()
                if slab is None:
                    break
                done.put((slab, fill(job, slab)))
            done.put(None)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        try:
            left, batch = _THREADS, self.batch
            while left:
                found = done.get()
                if found is None:
                    left -= 1
                    continue
                slab, rows = found
                for start in range(0, rows, batch):
                    yield torch.from_numpy(slab[start : min(rows, start + batch)])
                free.put(slab)
        finally:
            for _ in threads:  # an epoch that is left in its midst
                free.put(None)
            for thread in threads:
                thread.join()


class _Map(_Slabs):
    """Rows of the corpus, mapped."""

    def rows(self) -> int:
        return _BATCHES * int(self.batch)

    def jobs(self) -> list[Any]:
        order = self.random.permutation(self.corpus.count)
        return np.split(order, range(self.rows(), len(order), self.rows()))

    def worker(self) -> Any:
        rows = self.corpus.rows()
        if rows.dtype.itemsize == self.dtype.itemsize:
            rows = rows.view(self.dtype)
            return lambda job, slab: len(np.take(rows, job, axis=0, out=slab[: len(job)], mode="clip"))
        taken = np.empty((self.rows(), self.corpus.block), rows.dtype)

        def fill(job: Any, slab: Any) -> int:
            np.take(rows, job, axis=0, out=taken[: len(job)], mode="clip")
            slab[: len(job)] = taken[: len(job)]
            return len(job)

        return fill


class _Zstd(_Slabs):
    """Rows of our frames, compressed."""

    def __init__(self, corpus: Corpus, dest: str, options: Options) -> None:
        super().__init__(corpus, dest, options)
        self.frames: list[tuple[Any, int, int, int]] = []  # stored, raw bytes, where tokens begin, rows
        size = np.dtype(corpus.dtype).itemsize
        reader = DatasetReader.open(dest)
        for shard in range(len(reader.manifest.shards)):
            index, mapped = reader.index(shard), reader.local.mapped(shard)
            assert mapped is not None, "the dataset is local"
            layout = Layout.of(index, 0, size, reader.shard_name(shard))
            stored, sizes = index.frame_offset.tolist(), index.frame_size.tolist()
            columns = index.frame_raw_size.tolist(), layout.data.tolist(), np.diff(layout.start).tolist()
            for at, length, raw, data, tokens in zip(stored, sizes, *columns, strict=True):
                self.frames.append((mapped[at : at + length], raw, data, tokens // corpus.block))
        self.count = sum(frame[3] for frame in self.frames)

    def rows(self) -> int:
        return sum(sorted(frame[3] for frame in self.frames)[-_FRAMES:])

    def jobs(self) -> list[Any]:
        order = self.random.permutation(len(self.frames)).tolist()
        groups = [order[at : at + _FRAMES] for at in range(0, len(order), _FRAMES)]
        return [(group, self.random.permutation(sum(self.frames[f][3] for f in group))) for group in groups]

    def worker(self) -> Any:
        decompress = decompressing()
        block, stored = self.corpus.block, np.dtype(self.corpus.dtype)
        most = max(frame[1] for frame in self.frames)
        buffers = [np.empty(most, np.uint8) for _ in range(_FRAMES)]
        same = stored.itemsize == self.dtype.itemsize
        kind = self.dtype if same else stored
        taken = np.empty((self.rows(), block), kind)

        def fill(job: Any, slab: Any) -> int:
            group, order = job
            first, into = 0, slab if same else taken
            for number, buffer in zip(group, buffers, strict=False):
                data, raw, at, count = self.frames[number]
                decompress(data, buffer[:raw])
                found = buffer[at : at + count * block * stored.itemsize].view(kind).reshape(count, block)
                into[order[first : first + count]] = found
                first += count
            if not same:
                slab[:first] = taken[:first]
            return first

        return fill


def expected(corpus: Corpus, dest: str, options: Options) -> dict[str, Any]:
    """The corpus; or what is left of it if no row goes across frames."""
    if options["codec"] != "zstd":
        return {"count": corpus.count, "bytes": corpus.bytes, "digest": corpus.digest}
    digest, size = Digest(), np.dtype(corpus.dtype).itemsize
    reader = DatasetReader.open(dest)
    for shard in range(len(reader.manifest.shards)):
        layout = Layout.of(reader.index(shard), 0, size, reader.shard_name(shard))
        for frame, tokens in enumerate(np.diff(layout.start).tolist()):
            at, row = int(layout.data[frame]), corpus.block * size
            found = bytes(reader.frame(shard, frame))
            digest.add(found[at + n * row : at + (n + 1) * row] for n in range(tokens // corpus.block))
    return digest.facts()


def total(corpus: Corpus, dest: str, options: Options) -> int:
    """The rows of an epoch."""
    return corpus.count if options["codec"] != "zstd" else _Zstd(corpus, dest, options).count
