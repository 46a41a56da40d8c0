"""The files of local shards in memory, and which of their frames have been verified."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError, StorageError
from shardstream.format.manifest import Manifest, is_inside
from shardstream.storage.files import map_file
from shardstream.storage.remote import Store

__all__ = ["Files"]

_KEPT_MAPS = 256  # each holds a descriptor, of which a process has 1,024 by default


class Files:
    """The files of a dataset's shards, those that are local; may be used by many threads.

    name: a shard, for messages.
    """

    def __init__(self, store: Store, manifest: Manifest, name: Callable[[int], str]) -> None:
        self._store, self._shards, self._name = store, manifest.shards, name
        self._maps: OrderedDict[int, memoryview] = OrderedDict()
        self._verified: dict[int, NDArray[np.bool_]] = {}
        self._lock = threading.Lock()

    def get(self, shard: int) -> memoryview | None:
        """A shard's file in memory; None where it is not local."""
        with self._lock:
            found = self._maps.pop(shard, None)
            if found is not None:
                self._maps[shard] = found
                return found
        info = self._shards[shard]
        try:
            path = self._store.local_path(info.url) if is_inside(info.url) else info.url
            found = None if path is None else map_file(path)
        except StorageError as error:
            raise StorageError(f"{self._name(shard)}: {error}") from error
        if found is None:
            return None
        if len(found) != info.bytes:
            raise CorruptionError(
                f"{self._name(shard)}: {len(found)} bytes, the manifest says {info.bytes}; restore it"
            )
        with self._lock:
            self._maps[shard] = found
            while len(self._maps) > _KEPT_MAPS:
                self._maps.popitem(last=False)
        return found

    def verified(self, shard: int) -> NDArray[np.bool_]:
        """Which frames of a shard have been verified, bool [F]; to be marked by who verifies one."""
        found = self._verified.get(shard)
        if found is None:
            found = self._verified.setdefault(shard, np.zeros(self._shards[shard].frames, np.bool_))
        return found
