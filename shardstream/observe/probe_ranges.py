"""The ranges that a probe reads: real objects below a URL, or a file on a disk."""

from __future__ import annotations

import bisect
import itertools
import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shardstream.errors import StorageError
from shardstream.format.manifest import NAME, Manifest, is_inside
from shardstream.storage.inputs import expand
from shardstream.storage.manifests import read_manifest
from shardstream.storage.named import named
from shardstream.storage.options import split_options
from shardstream.storage.store import Store, local_path_of

__all__ = ["Ranges", "drop_pages", "objects_below", "unhedged"]

_LEAST = 4 << 10  # bytes of an object; smaller ones are not read from
_PATIENCE = 10.0  # seconds that a request may take at least
_DRAWN = 20_000  # ranges that are drawn at a time
_FILES = 10_000  # objects that are read from at most


@dataclass(frozen=True)
class Object:
    """An object: its store, its path in it, its size in bytes."""

    store: Store
    path: str
    size: int


class Ranges:
    """Random ranges of objects, none twice before all were read; for many threads.

    Args:
        objects: Each has at least one byte.
        seed: The same seed draws the same ranges.
    """

    def __init__(self, objects: Sequence[Object], seed: int = 0) -> None:
        self.objects = objects
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._orders: dict[int, Iterator[int]] = {}  # by the size of ranges: those that were not read yet
        self._ends: dict[int, list[int]] = {}

    @property
    def largest(self) -> int:
        """The size of the largest object."""
        return max(each.size for each in self.objects)

    @property
    def total(self) -> int:
        """The sizes of all objects, added up."""
        return sum(each.size for each in self.objects)

    @property
    def retries(self) -> int:
        """How many requests were tried again so far."""
        return sum(
            each.session.retries for each in {id(one.store): one.store for one in self.objects}.values()
        )

    def read(self, size: int) -> int:
        """Read a range of `size` bytes, or a smaller object as a whole; returns how many bytes came."""
        with self._lock:
            order = self._orders.get(size)
            cell = next(order, None) if order is not None else None
            if cell is None:
                order = self._orders[size] = iter(self._order(size))
                cell = next(order)
        found, start = self._cell(size, cell)
        return len(found.store.read_range(found.path, start, min(size, found.size)))

    def fresh(self, size: int) -> int | None:
        """The bytes that ranges of this size can read before one is read again; None if that is no matter."""
        return self._cells(size)[-1] * size if self.local else None

    @property
    def local(self) -> bool:
        """Whether the objects are local files, which the system has in memory after the first read."""
        return self.objects[0].store.local_path("") is not None

    def _cells(self, size: int) -> list[int]:
        """How many ranges of this size the objects have, up to each of them; small objects have none."""
        if size not in self._ends:
            least = min(size, self.largest)
            self._ends[size] = list(itertools.accumulate(each.size // least for each in self.objects))
        return self._ends[size]

    def _order(self, size: int) -> list[int]:
        """Different ranges in a random order."""
        count = self._cells(size)[-1]
        return self._random.sample(range(count), min(count, _DRAWN))

    def _cell(self, size: int, cell: int) -> tuple[Object, int]:
        ends = self._cells(size)
        number = bisect.bisect_right(ends, cell)
        before = ends[number - 1] if number else 0
        return self.objects[number], (cell - before) * size

    def make_cold(self) -> None:
        """Begin anew. Local files are dropped from the page cache: reads come from the disk."""
        with self._lock:
            self._orders.clear()
        for each in self.objects:
            path = each.store.local_path(each.path)
            if path is not None:
                drop_pages(path)


def drop_pages(path: str) -> None:
    """Drop a file's pages from the cache of the system; pages that were not written yet stay.

    Raises:
        StorageError: The file cannot be opened.
    """
    with named(path):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def unhedged(options: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """The options of a store without second requests, which would hide how slow the slow ones are.

    A store that does not answer is given up after `seconds`, or after 10 if that is more.
    """
    ours, theirs = split_options(options)
    deadline = min(ours.retry.deadline, max(_PATIENCE, seconds))
    span = None if ours.retry.span is None else min(ours.retry.span, deadline)
    retry = replace(ours.retry, hedge=False, deadline=deadline, span=span)
    return {**theirs, "retry": retry, "timeouts": ours.timeouts}


def objects_below(url: str, options: dict[str, Any] | None) -> tuple[list[Object], Manifest | None]:
    """The objects to read from, and the manifest if the URL is that of a dataset.

    Raises:
        StorageError: The store does not answer, or there is nothing to read.
        SourceError: There is nothing at this URL.
        CorruptionError: The manifest is damaged.
    """
    store = Store.open(url, options)
    manifest = None
    local = local_path_of(url)
    if (local is None or os.path.isdir(local)) and store.exists(NAME):
        manifest, _ = read_manifest(store)
        named = [(shard.url, shard.bytes) for shard in manifest.shards]
    else:
        named = [(each.url, each.size) for each in expand([url], options)]
    stores: dict[str, Store] = {"": store}

    def placed(name: str, size: int) -> Object:
        if manifest is not None and is_inside(name):
            return Object(store, name, size)
        folder, _, last = name.rpartition("/")
        if folder not in stores:
            stores[folder] = Store.open(folder or "/", options)
        return Object(stores[folder], last, size)

    named = [(name, size) for name, size in named if size >= _LEAST] or [one for one in named if one[1]]
    if not named:
        raise StorageError(f"{store.url}: no object with a byte here, so there is nothing to measure")
    return [placed(name, size) for name, size in named[:: -(-len(named) // _FILES)]], manifest
