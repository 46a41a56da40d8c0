"""How a dataset was opened, and its reader in this process."""

from __future__ import annotations

import os
from typing import Any

from shardstream.dataset.pickled_manifest import PickledManifest
from shardstream.format.manifest import Manifest
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache
from shardstream.storage.store import Options, redact

__all__ = ["Opening"]


class Opening:
    """One dataset, opened when it is first asked for, and anew in each process that it is sent to.

    All processes read by the manifest that the first one found, whatever the store has by then.

    Args:
        location: The URL, which may hold a password.
        storage_options: Of the store.
        cache: Where bytes stay.
    """

    def __init__(self, location: str, storage_options: Options, cache: Cache) -> None:
        self._location, self._storage_options = location, storage_options
        self.url = redact(location)  # as it may be shown
        self.cache = cache
        self._manifest: PickledManifest | None = None
        self._reader: DatasetReader | None = None
        self._process = os.getpid()

    @property
    def reader(self) -> DatasetReader:
        """The reader in this process."""
        # After a fork, what the parent's threads were doing is never finished here.
        if self._reader is None or self._process != os.getpid():
            known = None if self._manifest is None else self._manifest.manifest
            self._reader = DatasetReader.open(self._location, self._storage_options, self.cache, known)
            self._process = os.getpid()
            if known is None:
                self._manifest = PickledManifest(self._reader.manifest)
        return self._reader

    @property
    def known(self) -> Manifest | None:
        """The manifest, if it is in memory: nothing is read for it."""
        return None if self._manifest is None else self._manifest.loaded

    def as_of(self, fingerprint: str) -> Opening | None:
        """The dataset by the manifest with this fingerprint, if the cache has it; no store is asked."""
        reader = DatasetReader.open_from_cache(self._location, self._storage_options, self.cache, fingerprint)
        if reader is None:
            return None
        found = Opening(self._location, self._storage_options, self.cache)
        found._reader, found._manifest = reader, PickledManifest(reader.manifest)
        return found

    def with_cache(self, cache: Cache) -> Opening:
        """The same by the same manifest, with a reader and a cache of its own."""
        found = Opening(self._location, self._storage_options, cache)
        found._manifest = self._manifest
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Open files and locks stay behind.
        return self.__dict__ | {"_reader": None}
