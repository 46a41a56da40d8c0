"""Random access to a dataset: its indexes, frames and samples, every byte checked once."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError, OptionError, StorageError
from shardstream.format import frames
from shardstream.format.index import ShardIndex
from shardstream.format.manifest import MAX_BYTES, NAME, Manifest, is_inside
from shardstream.order.lanes import distinct
from shardstream.read.files import Files
from shardstream.read.kept import STREAMS, Kept
from shardstream.read.later import Later
from shardstream.read.streams import Streams
from shardstream.storage.cache import Cache, Tiers
from shardstream.storage.files import read_slice, size_of
from shardstream.storage.remote import Options, Store, redact
from shardstream.storage.stores import Data
from shardstream.storage.waits import current, work_for

_KEPT_FRAMES = 4
_CONNECTIONS = 32  # opened while the manifest is read, for the indexes of a first batch
_LOADERS = 8  # threads that read indexes
_KEPT_INDEXES = 256 << 20  # bytes of indexes


class DatasetReader:
    """A dataset opened for reading; may be used by many threads."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        storage_options: Options = None,
        tiers: Tiers | None = None,
        raw: bool = False,
        local: bool = True,
    ) -> None:
        """raw: frames are kept decompressed.  local: files on this machine are read where they are."""
        self.manifest = manifest
        self.kept = Kept(manifest, self._load, tiers or Tiers(), self.shard_name, raw)
        self._local = local
        # Then every shard is mapped, and nothing is worth fetching ahead.
        self.all_local = local and _is_local(store, manifest)
        self.url = store.url
        self._store = store
        self.kept.fetcher.pace(lambda: store.concurrency)
        self._options = storage_options
        self._fields = tuple(field.name for field in manifest.fields)
        self._bounds = [0, *accumulate(shard.samples for shard in manifest.shards)]
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._index_bytes = 0
        self._recent: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self._streams = Streams()
        self._files = Files(store, manifest, self.shard_name)
        self._later = Later(lambda shard: None)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: str, storage_options: Options = None, cache: Cache | None = None) -> DatasetReader:
        """Read and check the manifest; nothing else is fetched yet."""
        store = Store.open(str(url), storage_options)
        if cache is not None:  # else it is not to be streamed
            store.warm_up(NAME, _CONNECTIONS)
        manifest = read_manifest(store)
        if cache is None:
            return cls(store, manifest, storage_options)
        if _is_local(store, manifest) and not cache.always:
            return cls(store, manifest, storage_options)
        return cls(store, manifest, storage_options, cache.tiers(), cache.raw, not cache.always)

    def expect(self, frames: Sequence[tuple[int, int]]) -> None:
        """Fetch frames ahead that will be asked for in this order; returns at once, raises nothing."""
        if self.all_local:
            return
        self.kept.fetcher.ahead(
            self.kept.frame(shard, number, self.index(shard), soon=number == frame)
            for shard, frame in frames
            if self.mapped(shard) is None
            for number in self._later.take(shard, frame, self.index, self.kept.fetcher.room)
        )

    def expect_indexes(self, shards: Sequence[int]) -> None:
        """Fetch indexes ahead, all at once; `index` waits for those on their way. Raises nothing."""
        wanted = [shard for shard in dict.fromkeys(shards) if shard not in self._indexes]
        self.kept.fetcher.ahead([self.kept.index(shard) for shard in wanted], first=True)

    def plan(
        self, uses: Callable[[int], NDArray[np.float64]], later: Callable[[int], NDArray[np.bool_] | None]
    ) -> None:
        """Tell the cache in how many epochs from now each frame of a shard is needed next.

        later: which frames of a shard are certainly read in this epoch; None where that is not known.
        """
        self.kept.plan(self, uses)
        self._later = Later(later)
        self.kept.fetcher.restart()

    def taken(self, shard: int) -> NDArray[np.bool_]:
        """Which frames of a shard were given since the last `plan`, or are in memory to be given, [F]."""
        found = np.zeros(self.manifest.shards[shard].frames, np.bool_)
        found[self.kept.fetcher.taken(self.kept.group(shard))] = True
        return found

    @property
    def counters(self) -> dict[str, Any]:
        """Bytes from each tier, requests, blocks fetched again, and the store's backend."""
        store = self._store
        paced = {
            "retries": store.scope.retries, "hedges": store.scope.hedges, "concurrency": store.concurrency
        }  # fmt: skip
        return self.kept.counters(store.backend) | paced

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard, its columns in the order of the manifest's fields."""
        with self._lock:
            index = self._indexes.get(shard)
            if index is not None:
                self._indexes.move_to_end(shard)
                return index
        index = self.read_index(shard)
        with self._lock:
            if shard not in self._indexes:
                self._indexes[shard] = index
                self._index_bytes += index.nbytes
            while self._index_bytes > _KEPT_INDEXES and len(self._indexes) > 1:
                self._index_bytes -= self._indexes.popitem(last=False)[1].nbytes
        return index

    def load(self, shards: Sequence[int]) -> None:
        """Read the indexes of these shards, those that are not in memory at the same time."""
        with self._lock:
            missing = [shard for shard in shards if shard not in self._indexes]
        if len(missing) > 1:
            with ThreadPoolExecutor(_LOADERS, "shardstream-index", work_for, (current(),)) as pool:
                list(pool.map(self.index, missing))

    def read_index(self, shard: int) -> ShardIndex:
        """The index of a shard, read anew and not kept."""
        info = self.manifest.shards[shard]
        data = memoryview(self.kept.fetcher.get(self.kept.index(shard)))
        return ShardIndex.from_bytes(
            data,
            where=self._store.where(info.index_url),
            fields=len(info.fields),
            samples=info.samples,
            frames=info.frames,
            shard_bytes=info.bytes,
            raw_bytes=info.raw_bytes,
            contiguous=info.codec in ("zstd", "none"),
        ).with_columns(info.fields, self._fields)

    def frame(self, shard: int, frame: int) -> memoryview:
        """The raw bytes of one frame, verified. Holds whole samples."""
        info, index = self.manifest.shards[shard], self.index(shard)
        raw_size = int(index.frame_raw_size[frame])
        if info.codec in STREAMS:
            raw_offset = int(index.frame_raw_offset[frame])
            whole = self._streams.get(shard, info, self._stream, self.shard_name(shard))
            raw = whole[raw_offset : raw_offset + raw_size]
            self._check(raw, shard, frame)
            return raw
        if self.kept.raw and self.mapped(shard) is None:
            return memoryview(self.kept.fetcher.get(self.kept.frame(shard, frame, index)))
        stored = self.stored_frame(shard, frame)
        return frames.decompress(info.codec, stored, raw_size, self.frame_name(shard, frame))

    def stored_frame(self, shard: int, frame: int) -> Data:
        """The stored bytes of one frame, verified once. Not for codecs that store one stream."""
        info, index = self.manifest.shards[shard], self.index(shard)
        start, size = int(index.frame_offset[frame]), int(index.frame_size[frame])
        mapped = self.mapped(shard)
        if mapped is None:
            want = self.kept.frame(shard, frame, index)
            if not want.block.name.endswith(".raw"):
                return self.kept.fetcher.get(want)
            stored: Data = self._load(info.url, start, size)
            self._check(stored, shard, frame)
            return stored
        stored, verified = mapped[start : start + size], self.verified(shard)
        if not verified[frame]:
            self._check(stored, shard, frame)
            verified[frame] = True
        return stored

    def verified(self, shard: int) -> NDArray[np.bool_]:
        """Which frames of a shard in memory have been verified, bool [F]."""
        return self._files.verified(shard)

    def unverified(self, shard: int, frames: NDArray[np.int64]) -> list[int]:
        """Those of some frames of a shard in memory that are not verified yet, each once."""
        unseen: list[int] = distinct(frames[~self.verified(shard)[frames]]).tolist()
        return unseen

    def verify(self, frames: Iterable[tuple[int, int]]) -> None:
        """Verify frames of shards in memory."""
        for shard, frame in frames:
            self.stored_frame(shard, frame)

    def mapped(self, shard: int) -> memoryview | None:
        """A shard's file in memory, unverified, where it is local; else None."""
        return self._files.get(shard) if self._local else None

    def _check(self, data: Data, shard: int, frame: int) -> None:
        if frames.checksum(data) != int(self.index(shard).frame_checksum[frame]):
            where = self.frame_name(shard, frame)
            raise CorruptionError(f"{where}: damaged (wrong checksum); restore the shard or repack")

    def _load(self, url: str, start: int, size: int) -> Data:
        """A range of an object of the dataset, from its store."""
        if is_inside(url):
            return self._store.read_range(url, start, size)
        data = read_slice(url, start, size, self._options, self._store.scope)
        if len(data) != size:
            raise StorageError(f"{redact(url)}: {len(data)} bytes came back, {size} were asked for")
        return data

    def stored(self, shard: int, start: int, size: int) -> Data:
        """Stored bytes of a shard as they are, unchecked."""
        return self._load(self.manifest.shards[shard].url, start, size)

    def shard_size(self, shard: int) -> int:
        """The size that the store gives for a shard's file."""
        url = self.manifest.shards[shard].url
        return self._store.size(url) if is_inside(url) else size_of(url, self._options)

    def _stream(self, shard: int) -> Data:
        if self._local and self.mapped(shard) is not None:
            info = self.manifest.shards[shard]
            return self._load(info.url, 0, info.bytes)
        return self.kept.fetcher.get(self.kept.whole(shard))

    def _recent_frame(self, shard: int, frame: int) -> memoryview:
        key = (shard, frame)
        with self._lock:
            raw = self._recent.get(key)
        if raw is None:
            raw = self.frame(shard, frame)
            with self._lock:
                self._recent[key] = raw
                while len(self._recent) > _KEPT_FRAMES:
                    self._recent.popitem(last=False)
        return raw

    def shard_name(self, shard: int) -> str:
        """The shard's URL, for messages."""
        url = self.manifest.shards[shard].url
        return self._store.where(url) if is_inside(url) else redact(url)

    def frame_name(self, shard: int, frame: int) -> str:
        """A frame, for messages."""
        return f"{self.shard_name(shard)}, frame {frame}"

    def locate(self, number: int) -> tuple[int, int]:
        """(shard, sample in the shard) of a sample by its number in the dataset."""
        if not 0 <= number < self.manifest.samples:
            raise OptionError(f"sample {number}: the dataset has {self.manifest.samples} samples, from 0")
        shard = bisect_right(self._bounds, number) - 1
        return shard, number - self._bounds[shard]

    def find(self, key: str) -> tuple[int, int] | None:
        """(shard, sample) of the first sample with this key, or None; reads the indexes in order."""
        for shard in range(len(self.manifest.shards)):
            sample = self.index(shard).find(key)
            if sample is not None:
                return shard, sample
        return None

    def sample(self, shard: int, sample: int) -> tuple[str, dict[str, bytes]]:
        """(key, fields) of one sample; fields that it lacks are left out."""
        index = self.index(shard)
        raw = self._recent_frame(shard, index.frame_of(sample))
        return index.key(sample), self._fields_of(index, raw, sample)

    def _fields_of(self, index: ShardIndex, raw: memoryview, sample: int) -> dict[str, bytes]:
        cells = zip(
            self._fields, index.field_offset[sample].tolist(), index.field_size[sample].tolist(),
            strict=True,
        )  # fmt: skip
        return {name: bytes(raw[at : at + size]) for name, at, size in cells if size >= 0}

    def iter_samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Every sample in natural order; each frame is read once."""
        for shard in range(len(self.manifest.shards)):
            index = self.index(shard)
            bounds = index.frame_first.tolist()
            for frame, (begin, end) in enumerate(pairwise(bounds)):
                raw = self.frame(shard, frame)
                for sample, key in enumerate(index.keys_list(begin, end), start=begin):
                    yield key, self._fields_of(index, raw, sample)


def _is_local(store: Store, manifest: Manifest) -> bool:
    return store.local_path("") is not None and all(is_inside(shard.url) for shard in manifest.shards)


def read_manifest(store: Store) -> Manifest:
    """The manifest of the dataset in `store`."""
    where = store.where(NAME)
    try:
        data = store.read(NAME, MAX_BYTES)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError) and "no such" not in str(error.__cause__):
            raise StorageError(f"{store.url}: no dataset here ({NAME} is missing)") from error
        raise
    return Manifest.from_bytes(data, where)
