"""Random access to a dataset: its indexes, frames and samples, every byte checked once."""

from __future__ import annotations

import functools
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any

from shardstream.errors import OptionError, StorageError
from shardstream.format import frames
from shardstream.format.column_arrays import StoredColumn
from shardstream.format.index import ShardIndex
from shardstream.format.manifest import Manifest, is_inside
from shardstream.format.shards import shard_values
from shardstream.memory import RecentValues
from shardstream.order.lanes import RecentWindows
from shardstream.read.archives import Archives
from shardstream.read.dataset_blocks import STREAMS, DatasetBlocks
from shardstream.read.frames_ahead import FramesAhead
from shardstream.read.indexes import Indexes
from shardstream.read.local_frames import LocalFrames, check_frame
from shardstream.read.opening import open_manifest
from shardstream.read.shard_maps import Files
from shardstream.storage.cache.options import Cache
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.inputs import read_slice, size_of
from shardstream.storage.offline import OfflineStore, not_cached
from shardstream.storage.store import Options, Store, local_path_of, redact
from shardstream.storage.transport.backends import Data

__all__ = ["DatasetReader"]

# Parts of the budget, each with the bytes that are allowed even if the budget is smaller.
_WINDOWS = 3 / 32, 8 << 20  # for windows of orders
_FRAMES = 1 / 32, 0  # for frames from which single samples were read


class DatasetReader:
    """A dataset opened for reading; may be used by many threads.

    Args:
        store: Where the dataset is.
        manifest: Of the dataset.
        storage_options: For shards that do not lie below the store.
        tiers: The cache. By default there is no cache, and the reader has a budget of its own.
        raw: Whether the cache holds frames decompressed.
        local: Whether files on this machine are mapped and read where they lie.
        offline: Whether only files on this machine are read.

    Attributes:
        all_local: Whether every shard is on this machine and read where it lies. Then nothing is fetched.
        blocks: The blocks of the dataset.
        local: The frames of shards that are read where they lie.
        ahead: Fetches frames before they are asked for.
        budget: The memory in which all bytes count that the reader holds.
        windows: Where the orders of the dataset put the windows that they computed.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        storage_options: Options = None,
        tiers: Tiers | None = None,
        raw: bool = False,
        local: bool = True,
        offline: bool = False,
    ) -> None:
        self.manifest, self.url = manifest, store.url
        self._store, self._options = store, storage_options
        # No methods: they would refer to this object, and only the garbage collector could then free it.
        self._load = functools.partial(_load, store, storage_options, offline)
        self.shard_name = functools.partial(_shard_name, store, manifest)
        self.blocks = DatasetBlocks(manifest, self._load, tiers or Tiers(), self.shard_name, raw)
        self.blocks.fetcher.limit_ranges(lambda: store.concurrency)
        self.budget = self.blocks.tiers.budget
        self.all_local = local and _is_local(store, manifest)
        self._indexes = Indexes(store, manifest, self.blocks, self.all_local)
        files = Files(store, manifest, self.shard_name) if local else None
        self.local = LocalFrames(files, self._indexes.get, self.shard_name)
        self._fields = tuple(field.name for field in manifest.fields)
        self._bounds = array("q", accumulate(shard_values(manifest.shards, "samples"), initial=0))
        self.windows: RecentWindows = self.budget.recent_values("orders", attrgetter("nbytes"), *_WINDOWS)
        self._frames: RecentValues[tuple[int, int], memoryview] = self.budget.recent_values(
            "frames of single samples", len, *_FRAMES
        )
        self._archives = Archives(self.budget)
        self.ahead = FramesAhead(self.blocks, self.local, self._indexes.get)

    @classmethod
    def open(
        cls,
        url: str,
        storage_options: Options = None,
        cache: Cache | None = None,
        manifest: Manifest | None = None,
        connections: int = 0,
    ) -> DatasetReader:
        """Open a dataset. Only its manifest is read.

        Args:
            url: The folder or URL of the dataset.
            storage_options: For its store.
            cache: The cache, or None.
            manifest: The manifest, if it is known. Then it is not read.
            connections: How many connections to the store are opened while the manifest is read. Without a
                cache none is.

        Raises:
            StorageError: There is no dataset, or no access to it.
            CorruptionError: The manifest is damaged.
        """
        url = str(url)
        if cache is None or (local_path_of(url) is not None and not cache.always):
            store = Store.open(url, storage_options)
            manifest = manifest or open_manifest(store, None, 0 if cache is None else connections)
            if cache is None:
                return cls(store, manifest, storage_options)
            if _is_local(store, manifest):
                return cls(store, manifest, storage_options, Tiers(budget=cache.budget()))
            return cls(store, manifest, storage_options, cache.tiers(), cache.raw, offline=cache.offline)
        store = OfflineStore(url) if cache.offline else Store.open(url, storage_options)
        tiers = cache.tiers()
        manifest = manifest or open_manifest(store, tiers.disk, connections)
        return cls(store, manifest, storage_options, tiers, cache.raw, not cache.always, cache.offline)

    @classmethod
    def open_from_cache(
        cls, url: str, storage_options: Options, cache: Cache, fingerprint: str
    ) -> DatasetReader | None:
        """Open a dataset by a manifest in the cache, without asking the store.

        Args:
            url: The folder or URL of the dataset.
            storage_options: For its store.
            cache: The cache.
            fingerprint: Of the manifest.

        Returns:
            None if the cache does not have this manifest.
        """
        local = local_path_of(url)
        if cache.dir is None or (local is not None and not cache.always):
            return None
        disk = cache.tiers().disk
        found = None if disk is None else disk.manifest(local or url, fingerprint)
        return None if found is None else cls.open(url, storage_options, cache, found)

    @property
    def counters(self) -> dict[str, Any]:
        """Counters by name: bytes from each tier, requests, blocks fetched again, and the store's backend."""
        store = self._store
        more = {
            "retries": store.session.retries, "hedges": store.session.hedges, "concurrency": store.concurrency
        }  # fmt: skip
        return self.blocks.counters(store.backend) | more

    @property
    def memory(self) -> dict[str, int]:
        """The bytes of the budget that are in use now, by name, and its "limit"."""
        return {"limit": self.budget.limit, **self.budget.by_name()}

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard, its columns in the order of the manifest's fields. See `Indexes.get`."""
        return self._indexes.get(shard)

    def loaded_index(self, shard: int) -> ShardIndex | None:
        """The index of a shard, if it is in memory."""
        return self._indexes.in_memory(shard)

    def load_indexes(self, shards: Sequence[int]) -> None:
        """Read the indexes of these shards that are not in memory, all at the same time."""
        self._indexes.load(shards)

    def fetch_indexes_ahead(self, shards: Sequence[int], wait: float = 0.0) -> None:
        """Begin to fetch indexes; see `Indexes.fetch_ahead`."""
        self._indexes.fetch_ahead(shards, wait)

    def read_index(self, shard: int) -> ShardIndex:
        """The index of a shard, read again. It does not stay in memory."""
        return self._indexes.read(shard)

    def read_columns(self, shard: int) -> tuple[ShardIndex, dict[str, StoredColumn]]:
        """The index of a shard and its columns of values by name, read again. They do not stay in memory."""
        return self._indexes.read_columns(shard)

    def frame(self, shard: int, frame: int) -> memoryview:
        """The raw bytes of one frame, verified. A frame holds whole samples.

        If the shard is not compressed, the bytes may lie in a mapped file. Then call `local.check_again`
        after they were used.

        Raises:
            CorruptionError: The frame is damaged.
            StorageError: The frame cannot be read.
        """
        info, index = self.manifest.shards[shard], self.index(shard)
        raw_size = int(index.frame_raw_size[frame])
        if info.codec in STREAMS:
            raw_offset = int(index.frame_raw_offset[frame])
            whole = self._archives.get(shard, info, self._archive, self.shard_name(shard))
            raw = whole[raw_offset : raw_offset + raw_size]
            check_frame(raw, index, frame, self.shard_name(shard))
            return raw
        if self.decompressed(shard):
            return memoryview(self.blocks.fetcher.get(self.blocks.frame(shard, frame, index)))
        stored = self.stored_frame(shard, frame)
        raw = frames.decompress(info.codec, stored, raw_size, self.frame_name(shard, frame))
        if info.codec != "none":
            self.local.check_again(shard, frame)
        return raw

    def decompressed(self, shard: int) -> bool:
        """Whether the cache holds the frames of a shard decompressed."""
        return self.blocks.raw and self.local.mapped(shard) is None

    def stored_frame(self, shard: int, frame: int) -> Data:
        """The stored bytes of one frame, verified. Not for shards that are one compressed stream.

        The bytes may lie in a mapped file, so call `local.check_again` after they were used.

        Raises:
            CorruptionError: The frame is damaged.
            StorageError: The frame cannot be read.
        """
        if self.local.mapped(shard) is not None:
            return self.local.verify(shard, frame, again=False)
        info, index = self.manifest.shards[shard], self.index(shard)
        request = self.blocks.frame(shard, frame, index)
        if not request.block.name.endswith(".raw"):
            return self.blocks.fetcher.get(request)
        stored = self._load(info.url, int(index.frame_offset[frame]), int(index.frame_size[frame]))
        check_frame(stored, index, frame, self.shard_name(shard))
        return stored

    def stored(self, shard: int, start: int, size: int) -> Data:
        """`size` stored bytes of a shard from `start` on, not checked."""
        return self._load(self.manifest.shards[shard].url, start, size)

    def shard_size(self, shard: int) -> int:
        """The size of a shard's file, in bytes, as the store says."""
        url = self.manifest.shards[shard].url
        return self._store.size(url) if is_inside(url) else size_of(url, self._options)

    def _archive(self, shard: int) -> Data:
        """The file of a shard that is one compressed stream."""
        if self.local.mapped(shard) is not None:
            info = self.manifest.shards[shard]
            return self._load(info.url, 0, info.bytes)
        return self.blocks.fetcher.get(self.blocks.whole(shard))

    def _frame_of_sample(self, shard: int, frame: int) -> memoryview:
        """The raw bytes of a frame, which stay in memory for the samples that are asked for next."""
        # An uncompressed frame is part of a mapped file, which may change: it must be looked at each time.
        if self.manifest.shards[shard].codec == "none":
            return self.frame(shard, frame)
        key = (shard, frame)
        raw = self._frames.get(key)
        return self._frames.put(key, self.frame(shard, frame)) if raw is None else raw

    def frame_name(self, shard: int, frame: int) -> str:
        """The name of a frame for messages."""
        return f"{self.shard_name(shard)}, frame {frame}"

    def locate(self, number: int) -> tuple[int, int]:
        """(shard, number in the shard) of a sample, by its number in the dataset.

        Raises:
            OptionError: There is no such sample.
        """
        if not 0 <= number < self.manifest.samples:
            raise OptionError(f"sample {number}: the dataset has {self.manifest.samples} samples, from 0")
        shard = bisect_right(self._bounds, number) - 1
        return shard, number - self._bounds[shard]

    def find(self, key: str) -> tuple[int, int] | None:
        """(shard, number in the shard) of the first sample with a key, or None. Reads index after index."""
        for shard in range(len(self.manifest.shards)):
            sample = self.index(shard).find(key)
            if sample is not None:
                return shard, sample
        return None

    def sample(self, shard: int, sample: int) -> tuple[str, dict[str, bytes]]:
        """(key, fields) of one sample, without the fields that the sample lacks."""
        index = self.index(shard)
        frame = index.frame_of(sample)
        fields = self._fields_of(index, self._frame_of_sample(shard, frame), sample)
        if self.manifest.shards[shard].codec == "none":
            self.local.check_again(shard, frame)
        return index.key(sample), fields

    def _fields_of(self, index: ShardIndex, raw: memoryview, sample: int) -> dict[str, bytes]:
        cells = zip(
            self._fields, index.field_offset[sample].tolist(), index.field_size[sample].tolist(),
            strict=True,
        )  # fmt: skip
        return {name: bytes(raw[at : at + size]) for name, at, size in cells if size >= 0}

    def iter_samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(key, fields) of every sample in natural order. Each frame is read once."""
        for shard in range(len(self.manifest.shards)):
            index = self.index(shard)
            bounds = index.frame_first.tolist()
            for frame, (begin, end) in enumerate(pairwise(bounds)):
                raw = self.frame(shard, frame)
                for sample, key in enumerate(index.keys_list(begin, end), start=begin):
                    yield key, self._fields_of(index, raw, sample)
                if self.manifest.shards[shard].codec == "none":
                    self.local.check_again(shard, frame)


def _load(store: Store, options: Options, offline: bool, url: str, start: int, size: int) -> Data:
    """`size` bytes of a file of a dataset, from `start` on, from its store."""
    if is_inside(url):
        return store.read_range(url, start, size)
    if offline and local_path_of(url) is None:
        raise not_cached(redact(url))
    data = read_slice(url, start, size, options, store.session)
    if len(data) != size:
        raise StorageError(f"{redact(url)}: {len(data)} bytes came back, {size} were asked for")
    return data


def _shard_name(store: Store, manifest: Manifest, shard: int) -> str:
    """The URL of a shard for messages, without credentials."""
    url = manifest.shards[shard].url
    return store.where(url) if is_inside(url) else redact(url)


def _is_local(store: Store, manifest: Manifest) -> bool:
    # Shards may lie elsewhere only if the manifest says so.
    return store.local_path("") is not None and not (
        manifest.external and any(not is_inside(shard.url) for shard in manifest.shards)
    )
