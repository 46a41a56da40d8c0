"""Floors for samples: the smallest programs that do the same work, with no order, no checks and no state.

options["floor"] names which:

documents   two threads: each decompresses 4 frames into buffers that it uses again, cuts their documents in
            random order, and makes dicts of key, text and numbers. Frames that are not compressed are cut in
            the map.
images      two threads copy the JPEGs of random batches from the page cache, into memory that is used again.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from benchmarks.corpora import Corpus, document_payload, image_payload
from benchmarks.peers import ours
from benchmarks.peers.common import Options, expected
from benchmarks.peers.decompressing import decompressing

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "views", "write"]
PACKAGES = ("zstandard", "msgspec")
_THREADS = 2
_AHEAD = 4  # pieces of work that wait for the consumer
_FRAMES = 4  # at a time

write = ours.write


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """An iterable of batches."""
    return {"documents": _Documents, "images": _Images}[options["floor"]](dest, options["batch"])


class _Floor:
    """Threads that do pieces of work, each a list of batches, and hand them out in any order."""

    def __init__(self, dest: str, batch: int) -> None:
        from shardstream.read.reader import DatasetReader

        self.reader, self.batch = DatasetReader.open(dest), batch
        self.names = [info.name for info in self.reader.manifest.fields]
        self.random, self.local = random.Random(1), threading.local()

    def jobs(self) -> list[Any]:
        """The pieces of work of an epoch."""
        raise NotImplementedError

    def work(self, job: Any) -> list[Any]:
        """The batches of a piece."""
        raise NotImplementedError

    def given(self, batches: list[Any]) -> None:
        """All batches of a piece were handed out, and the consumer is done with them."""

    def __iter__(self) -> Iterator[Any]:
        jobs, done = iter(self.jobs()), queue.Queue[Any](_AHEAD)

        def run() -> None:
            try:
                for job in jobs:  # taking the next one is atomic
                    done.put(self.work(job))
                done.put(None)
            except BaseException as error:  # noqa: BLE001 - the consumer raises it
                done.put(error)

        for _ in range(_THREADS):
            threading.Thread(target=run, daemon=True).start()
        running = _THREADS
        while running:
            batches = done.get()
            if isinstance(batches, BaseException):
                raise batches
            if batches is None:
                running -= 1
                continue
            yield from batches
            self.given(batches)


class _Documents(_Floor):
    def jobs(self) -> list[Any]:
        if not hasattr(self, "_frames"):
            self._frames = [self._frame(*at) for at in self._places()]
        self.random.shuffle(self._frames)
        return [self._frames[at : at + _FRAMES] for at in range(0, len(self._frames), _FRAMES)]

    def _places(self) -> Iterator[tuple[int, int]]:
        for shard, info in enumerate(self.reader.manifest.shards):
            yield from ((shard, frame) for frame in range(info.frames))

    def _frame(self, shard: int, frame: int) -> tuple[Any, ...]:
        """A frame as stored, the bytes of its content (0: the same), and where each document lies."""
        index, file = self.reader.index(shard), self.reader.local.mapped(shard)
        assert file is not None
        at, size = int(index.frame_offset[frame]), int(index.frame_size[frame])
        rows = slice(int(index.frame_first[frame]), int(index.frame_first[frame + 1]))
        text, more = (self.names.index(name) for name in ("txt", "json"))
        begins, sizes = np.asarray(index.field_offset[rows]), np.asarray(index.field_size[rows])
        ends = begins + sizes
        columns = (begins[:, text], ends[:, text], begins[:, more], ends[:, more])
        places = zip(
            index.keys_list(rows.start, rows.stop), *(column.tolist() for column in columns), strict=True
        )
        raw = int(index.frame_raw_size[frame])
        packed = self.reader.manifest.shards[shard].codec == "zstd"
        return file[at : at + size], raw if packed else 0, list(places)

    def work(self, job: list[tuple[Any, ...]]) -> list[Any]:
        rows = []
        for number, (stored, raw, places) in enumerate(job):
            data = self._content(number, stored, raw) if raw else stored
            rows += [(data, *place) for place in places]
        random.shuffle(rows)
        decode = msgspec.json.decode
        made = [
            {"__key__": key, "txt": str(data[begin:end], "utf-8"), "json": decode(data[first:last])}
            for data, key, begin, end, first, last in rows
        ]
        return [made[at : at + self.batch] for at in range(0, len(made), self.batch)]

    def _content(self, number: int, stored: memoryview, raw: int) -> memoryview:
        """A frame, decompressed into this thread's buffer of that number."""
        kept = self.local.__dict__.setdefault("buffers", {})
        if len(kept.get(number, b"")) < raw:
            kept[number] = memoryview(bytearray(max(raw, 1 << 21)))
        if not hasattr(self.local, "decompress"):
            self.local.decompress = decompressing()
        self.local.decompress(stored, kept[number][:raw])
        return kept[number][:raw]


class _Images(_Floor):
    def jobs(self) -> list[Any]:
        if not hasattr(self, "_rows"):
            self._rows = [row for shard in range(len(self.reader.manifest.shards)) for row in self._of(shard)]
            self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.random.shuffle(self._rows)
        return [self._rows[at : at + self.batch] for at in range(0, len(self._rows), self.batch)]

    def _of(self, shard: int) -> Iterator[tuple[Any, int]]:
        """The JPEGs of a shard in its map, and their labels."""
        index, file = self.reader.index(shard), self.reader.local.mapped(shard)
        assert file is not None
        first = np.asarray(index.frame_first).astype(np.int64)
        frame = np.searchsorted(first, np.arange(index.samples), side="right") - 1
        start = np.asarray(index.frame_offset).astype(np.int64)[frame, None] + np.asarray(index.field_offset)
        image, label = (self.names.index(name) for name in ("jpg", "cls"))
        for begins, sizes in zip(start.tolist(), np.asarray(index.field_size).tolist(), strict=True):
            number = bytes(file[begins[label] : begins[label] + sizes[label]])
            yield file[begins[image] : begins[image] + sizes[image]], int(number)

    def work(self, job: list[tuple[Any, int]]) -> list[Any]:
        size = sum(len(data) for data, _ in job)
        try:
            slab = self._free.get_nowait()
        except queue.Empty:
            slab = np.empty(0, np.uint8)
        if len(slab) < size:
            slab = np.empty(size + size // 4, np.uint8)
        memory, at, batch = slab.data, 0, []
        for data, label in job:
            end = at + len(data)
            slab[at:end] = data
            batch.append((memory[at:end], label))
            at = end
        return [(batch, slab)]

    def given(self, batches: list[Any]) -> None:
        for _, slab in batches:
            self._free.put(slab)


def count(batch: Any) -> int:
    """The samples of a batch."""
    return len(batch[0] if type(batch) is tuple else batch)


def views(batch: Any) -> list[Any]:
    """The JPEGs of a batch."""
    return [data for data, _ in batch[0]]


def payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """What arrived."""
    if corpus.kind == "documents":
        for row in batch:
            yield document_payload(row["json"].get("id", row["__key__"]), row["txt"])
    else:
        for data, label in batch[0]:
            yield image_payload(bytes(data), label)
