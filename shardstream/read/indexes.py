"""The indexes of a dataset's shards: reads and checks them; those used last stay in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter

from shardstream.errors import CorruptionError, StorageError
from shardstream.format.column_arrays import StoredColumn
from shardstream.format.index import ShardIndex
from shardstream.format.index_contents import columns_from_bytes
from shardstream.format.manifest import Manifest
from shardstream.memory import RecentValues
from shardstream.read.dataset_blocks import DatasetBlocks
from shardstream.read.opening import current_fingerprint
from shardstream.storage.cancellation import current, work_for
from shardstream.storage.fetch.in_flight import BlockRequest
from shardstream.storage.store import Store

__all__ = ["Indexes"]

_THREADS = 8
_SOON = 0.001  # seconds of waiting to read an index, up to which threads are not worth it
_SLOW = 2  # so many indexes in turn that took longer are read by threads from then on
_TURN = 0.03  # seconds in which the first frames of an epoch are sent for
_SHARE = 1 / 4, 8 << 20  # part of the budget, and the bytes that are allowed even if the budget is smaller


class Indexes:
    """The indexes of a dataset's shards, their columns in the order of the manifest's fields.

    May be used by many threads. The indexes that were used last stay in memory, as a part of the budget of
    the tiers.

    Args:
        store: Where the dataset is.
        manifest: Of the dataset.
        blocks: Of the dataset.
        near: Whether all files are on this machine, as far as it knows.
    """

    def __init__(self, store: Store, manifest: Manifest, blocks: DatasetBlocks, near: bool) -> None:
        self._store, self._manifest, self._blocks, self._near = store, manifest, blocks, near
        self._fields = tuple(field.name for field in manifest.fields)
        self._recent: RecentValues[int, ShardIndex] = blocks.tiers.budget.recent_values(
            "indexes", attrgetter("nbytes"), *_SHARE
        )

    def get(self, shard: int) -> ShardIndex:
        """The index of a shard.

        Raises:
            CorruptionError: The index is damaged.
            StorageError: The index cannot be read, or the dataset was replaced.
        """
        index = self._recent.get(shard)
        return self._recent.put(shard, self.read(shard)) if index is None else index

    def in_memory(self, shard: int) -> ShardIndex | None:
        """The index of a shard, if it is in memory."""
        return self._recent.peek(shard)

    def load(self, shards: Sequence[int]) -> None:
        """Read the indexes of these shards that are not in memory, at the same time if one takes long."""
        missing = [shard for shard in shards if shard not in self._recent]
        slow = 0
        while self._near and missing and slow < _SLOW:
            # A small file in the page cache is read sooner than a thread starts; one of NFS is not. What this
            # thread computes does not count, and one wait may be one for the interpreter or a processor.
            begin, computed = time.monotonic(), time.thread_time()
            self.get(missing.pop())
            waited = time.monotonic() - begin - (time.thread_time() - computed)
            slow = slow + 1 if waited > _SOON else 0
        if len(missing) > 1:
            if not self._near:
                # Threads that find an index not sent for yet ask for it at once, in front of what is planned.
                # When an epoch begins, these are the frames of its first batch; later, nothing waits here.
                self._blocks.fetcher.settle(_TURN)
            with ThreadPoolExecutor(_THREADS, "shardstream-index", work_for, (current(),)) as pool:
                list(pool.map(self.get, missing))

    def fetch_ahead(self, shards: Sequence[int], wait: float = 0.0) -> None:
        """Begin to fetch indexes, all at once. `get` then waits for what is on its way. Raises nothing.

        Args:
            shards: The numbers of their shards.
            wait: How many seconds to wait for the SSD tier to accept an index. After that it is fetched
                without being written there.
        """
        missing = [shard for shard in dict.fromkeys(shards) if shard not in self._recent]
        self._blocks.fetcher.ahead([self._blocks.index(shard) for shard in missing], first=True, wait=wait)

    def read(self, shard: int) -> ShardIndex:
        """The index of a shard, read again. It does not stay in memory. Raises what `get` raises."""
        return self._index(shard, self._bytes(self._blocks.index(shard)))

    def read_columns(self, shard: int) -> tuple[ShardIndex, dict[str, StoredColumn]]:
        """The index of a shard and its columns of values by name, read again. Raises what `get` raises."""
        info = self._manifest.shards[shard]
        data = self._bytes(self._blocks.whole_index(shard))
        where = self._store.where(info.index_url)
        return self._index(shard, data), columns_from_bytes(data, where, info.columns, info.samples)

    def _bytes(self, request: BlockRequest) -> memoryview:
        try:
            return memoryview(self._blocks.fetcher.get(request))
        except (CorruptionError, StorageError) as error:
            self._say_if_replaced(error)
            raise

    def _index(self, shard: int, data: memoryview) -> ShardIndex:
        info = self._manifest.shards[shard]
        return ShardIndex.from_bytes(
            data,
            where=self._store.where(info.index_url),
            fields=len(info.fields),
            samples=info.samples,
            frames=info.frames,
            shard_bytes=info.bytes,
            raw_bytes=info.raw_bytes,
            contiguous=info.codec in ("zstd", "none"),
            columns=info.columns,
        ).with_columns(info.fields, self._fields)

    def _say_if_replaced(self, error: Exception) -> None:
        """Raise a StorageError that explains `error`, if another dataset now lies where this one was."""
        try:
            found = current_fingerprint(self._store)
        except (CorruptionError, StorageError):
            return
        if found != self._manifest.fingerprint:
            raise StorageError(
                f"{self._store.url}: the dataset was replaced while it was in use: it was opened with "
                f"fingerprint {self._manifest.fingerprint}, and {found} is there now, without the shards of "
                f"before. Start again with the new one; states of the old one do not fit it"
            ) from error
