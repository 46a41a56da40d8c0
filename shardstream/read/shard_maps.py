"""The files of local shards, mapped into memory; and which of their frames were verified."""

from __future__ import annotations

import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.format.manifest import Manifest, is_inside
from shardstream.memory import when_dropped
from shardstream.storage.local.maps import NO_MAP, map_descriptor
from shardstream.storage.store import Store, local_path_of, named

__all__ = ["Files", "Version"]

_MOST_MAPS = 16_384  # of all datasets of a process; Linux allows a process 65,530 maps by default
_MOMENT = 0.01  # seconds for which a look at a file counts at least; but a look may have to ask a server,
_LITTLE = 1_000  # so it counts for at least this many times its own duration

Key = tuple[int, int]
Stamp = tuple[int, int, int, int, int]
# There is no lock, since each step is atomic. So a fork or a finalizer never finds a lock that is held.
_maps: OrderedDict[Key, tuple[memoryview, Version]] = OrderedDict()
_numbers = itertools.count()


class Version(NamedTuple):
    """A shard's file as it was at the last look.

    Attributes:
        path: The path of the file.
        file: The device and the inode of the file that is mapped.
        stamp: Device, inode, size and times of the file that lies at `path`. They change if the file does.
            None if no file lies there.
        verified: bool [F], which frames are verified. Whoever verifies a frame marks it here.
        changed: Whether this is not the first version of the file.
    """

    path: str
    file: tuple[int, int]
    stamp: Stamp | None
    verified: NDArray[np.bool_]
    changed: bool


class Files:
    """The local files of a dataset's shards, mapped into memory; for many threads.

    If a file is replaced, its map still shows the old content. If somebody writes to the file, the map shows
    the new content. So a frame counts as verified only while its file is unchanged; `look` finds that out.

    Args:
        store: Where the dataset is.
        manifest: Of the dataset.
        name: From a shard to its name for messages.
    """

    def __init__(self, store: Store, manifest: Manifest, name: Callable[[int], str]) -> None:
        self._store, self._shards, self._name = store, manifest.shards, name
        self._number, self._mapped = next(_numbers), set[int]()
        self._versions: dict[int, Version] = {}
        self._unmappable: set[int] = set()
        self._fresh: dict[int, float] = {}  # until which time the last look at a shard counts
        when_dropped(self, _drop, self._number, self._mapped)

    def get(self, shard: int) -> tuple[memoryview, Version] | None:
        """The map of a shard's file, and the version of the last look; None if the file cannot be mapped.

        Raises:
            CorruptionError: The file does not have the size that the manifest says.
            StorageError: The file cannot be opened.
        """
        key = self._number, shard
        found = _maps.get(key)
        if found is None:
            return None if shard in self._unmappable else self._open(shard)
        try:
            _maps.move_to_end(key)
        except KeyError:  # another thread dropped it
            _maps[key] = found
        return found

    def look(self, shard: int, again: bool = True) -> tuple[memoryview, Version] | None:
        """Look at a shard's file, and return what `get` does. If the file has changed, no frame is verified.

        Args:
            shard: The number of the shard.
            again: Whether to look even if the last look was a moment ago.

        Raises:
            CorruptionError: The mapped file was cut short. To read beyond its end would kill the process.
        """
        found = self.get(shard)
        begin = time.monotonic()
        if found is None or (not again and begin < self._fresh.get(shard, 0.0)):
            return found
        data, version = found
        try:
            status = os.stat(version.path)
        except OSError:  # deleted: the map still shows the file
            stamp = None
        else:
            stamp = _stamp(status)
            if stamp[:2] == version.file and status.st_size < len(data):
                raise CorruptionError(
                    f"{self._name(shard)}: cut short to {status.st_size} bytes while it was read, "
                    f"the manifest says {len(data)}; restore it"
                )
        end = time.monotonic()
        self._fresh[shard] = end + max(_MOMENT, _LITTLE * (end - begin))
        if stamp == version.stamp:
            return found
        found = data, self._next(version.path, version.file, stamp, shard)
        _maps[self._number, shard] = found
        return found

    def _open(self, shard: int) -> tuple[memoryview, Version] | None:
        info, name = self._shards[shard], self._name(shard)
        path = self._store.local_path(info.url) if is_inside(info.url) else local_path_of(info.url)
        if path is None:
            self._unmappable.add(shard)
            return None
        with named(name):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = os.fstat(file)
                if status.st_size != info.bytes:
                    raise CorruptionError(
                        f"{name}: {status.st_size} bytes, the manifest says {info.bytes}; restore it"
                    )
                data = _mapped(file, info.bytes)
            finally:
                os.close(file)
        stamp, version = _stamp(status), self._versions.get(shard)
        if data is None:
            self._unmappable.add(shard)
            return None
        if version is None or version.file != stamp[:2] or version.stamp != stamp:
            version = self._next(path, stamp[:2], stamp, shard)
        found = data, version
        self._mapped.add(shard)
        _maps[self._number, shard] = found
        while len(_maps) > _MOST_MAPS:
            _maps.popitem(last=False)
        return found

    def _next(self, path: str, file: tuple[int, int], stamp: Stamp | None, shard: int) -> Version:
        verified = np.zeros(self._shards[shard].frames, np.bool_)
        version = Version(path, file, stamp, verified, shard in self._versions)
        self._versions[shard] = version
        return version


def _stamp(status: os.stat_result) -> Stamp:
    # With the change time: programs can set the modification time back, but not the change time.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _mapped(file: int, size: int) -> memoryview | None:
    """The map of a file; None if it cannot be mapped, and has to be read instead."""
    for _ in range(2):
        try:
            return map_descriptor(file, size)
        except OSError as error:
            if error.errno not in NO_MAP:
                raise
            _maps.clear()  # to make room; maps in use stay mapped
    return None


def _drop(number: int, shards: set[int]) -> None:
    for shard in shards:
        _maps.pop((number, shard), None)
