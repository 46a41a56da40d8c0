"""How a dataset was opened, and its reader in this process."""

from __future__ import annotations

import os
from typing import Any

from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.pickled_manifest import PickledManifest
from shardstream.errors import ShardstreamError
from shardstream.format.manifest import Manifest
from shardstream.order.shuffle import Shuffle
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache
from shardstream.storage.store import Options, redact

__all__ = ["Opening"]

_CONNECTIONS = 32  # to the store at most, when the first indexes and frames are read


class Opening:
    """One dataset, opened when it is first asked for, and anew in each process that it is sent to.

    All processes read by the manifest that the first one found, whatever the store has by then.

    Args:
        location: The URL, which may hold a password.
        storage_options: Of the store.
        cache: Where bytes stay.
        shuffle: How the order is shuffled; it has lanes.
        rank: The place among the data-parallel ranks, which divide the lanes among them.
    """

    def __init__(
        self,
        location: str,
        storage_options: Options,
        cache: Cache,
        shuffle: Shuffle | None,
        rank: DatasetRank,
    ) -> None:
        self._location, self._storage_options = location, storage_options
        self.url = redact(location)  # as it may be shown
        self.cache, self._shuffle, self._rank = cache, shuffle, rank
        self._manifest: PickledManifest | None = None
        self._reader: DatasetReader | None = None
        self._process = os.getpid()

    @property
    def reader(self) -> DatasetReader:
        """The reader in this process."""
        # After a fork, what the parent's threads were doing is never finished here.
        if self._reader is None or self._process != os.getpid():
            known = None if self._manifest is None else self._manifest.manifest
            self._reader = DatasetReader.open(
                self._location, self._storage_options, self.cache, known, self._connections()
            )
            self._process = os.getpid()
            if known is None:
                self._manifest = PickledManifest(self._reader.manifest)
        return self._reader

    def _connections(self) -> int:
        """How many connections are opened beforehand: one for each lane of this rank, and few of many ranks.

        The one that reads the manifest is there already.
        """
        try:
            ranks = self._rank.now.dp_size
        except ShardstreamError:  # launchers contradict each other: who iterates is told
            return 0
        lanes = (self._shuffle or Shuffle()).lanes_for(ranks)
        return min(-(-lanes // ranks), _CONNECTIONS) - 1

    @property
    def known(self) -> Manifest | None:
        """The manifest, if it is in memory: nothing is read for it."""
        return None if self._manifest is None else self._manifest.loaded

    def as_of(self, fingerprint: str) -> Opening | None:
        """The dataset by the manifest with this fingerprint, if the cache has it; no store is asked."""
        reader = DatasetReader.open_from_cache(self._location, self._storage_options, self.cache, fingerprint)
        if reader is None:
            return None
        found = Opening(self._location, self._storage_options, self.cache, self._shuffle, self._rank)
        found._reader, found._manifest = reader, PickledManifest(reader.manifest)
        return found

    def with_cache(self, cache: Cache) -> Opening:
        """The same by the same manifest, with a reader and a cache of its own."""
        found = Opening(self._location, self._storage_options, cache, self._shuffle, self._rank)
        found._manifest = self._manifest
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Open files and locks stay behind.
        return self.__dict__ | {"_reader": None}
