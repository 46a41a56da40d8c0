"""StreamingDataset: the samples of a packed dataset, in an order that any rank can compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardstream.decode.registry import decode_field
from shardstream.distributed import Topology
from shardstream.errors import OptionError, StateError
from shardstream.format.manifest import Manifest
from shardstream.format.sizes import parse_size
from shardstream.order.cursor import STATE_VERSION, Cursor, Run, check_state, read_place
from shardstream.order.lanes import Order
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.order.topology import rank_samples
from shardstream.read.engine import Budget, Chunk, RawSample, stream
from shardstream.read.reader import DatasetReader

if TYPE_CHECKING:

    class _Iterable: ...

else:
    try:
        # DataLoader recognises an iterable dataset by this class and by nothing else.
        from torch.utils.data import IterableDataset as _Iterable
    except ImportError:
        _Iterable = object

__all__ = ["Cache", "StreamingDataset"]

Sample = dict[str, Any]
_CHUNK = 64


@dataclass(frozen=True)
class Cache:
    """What may be kept: files in `dir` up to `disk` bytes, frames in memory up to `ram` bytes.

    Datasets on local disks are read where they are, so that only `ram` matters to them.
    """

    dir: str | os.PathLike[str] | None = None
    disk: str | int | None = None
    ram: str | int = "1GiB"

    def __post_init__(self) -> None:
        parse_size(self.ram, "ram")
        if self.disk is not None:
            parse_size(self.disk, "disk")
            if self.dir is None:
                raise OptionError(f"disk={self.disk!r} needs a dir to keep files in")


class StreamingDataset(_Iterable):
    """The samples of the dataset at `url`, as dicts {"__key__": str, field: value}.

    Iterating gives this rank's samples of one epoch; iterating again is the next epoch. In the
    worker processes of a torch DataLoader each sample comes from exactly one worker; there, call
    `set_epoch` on the dataset before each epoch, since workers do not tell how far they came.

    fields: the fields to read, all by default.  decode: False leaves the fields bytes.
    shuffle: False for the natural order, True for Shuffle(), or a Shuffle.
    topology: "auto" asks torch.distributed or the launcher for this process's rank.
    transform: called with each decoded sample, in background threads.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        fields: list[str] | tuple[str, ...] | None = None,
        decode: bool = True,
        shuffle: bool | Shuffle = False,
        cache: Cache | str | os.PathLike[str] | None = None,
        topology: Ranks | str = "auto",
        transform: Callable[[Sample], Any] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self.url = os.fspath(url)
        self.decode, self.transform = decode, transform
        self.shuffle = _shuffle(shuffle)
        self.cache = _cache(cache)
        self.topology = _topology(topology)
        self._storage_options = storage_options
        self._reader: DatasetReader | None = None
        self._cursor = Cursor()
        self._lanes: int | None = None if self.shuffle is None else self.shuffle.lanes
        manifest = self.reader.manifest
        known = {info.name: info for info in manifest.fields}
        if isinstance(fields, str):
            raise OptionError(f"fields={fields!r} must be a list of names, such as [{fields!r}]")
        self.fields = None if fields is None else tuple(fields)
        unknown = [name for name in self.fields or () if name not in known]
        if unknown:
            raise OptionError(f"{self.url} has no field {unknown[0]!r}; it has {sorted(known)}")
        self._kinds = {name: (info.codec, info.dtype) for name, info in known.items()}

    @property
    def reader(self) -> DatasetReader:
        """The reader behind the dataset, opened anew in each process that it is sent to."""
        if self._reader is None:
            self._reader = DatasetReader.open(self.url, self._storage_options)
        return self._reader

    @property
    def manifest(self) -> Manifest:
        """The manifest of the dataset."""
        return self.reader.manifest

    @property
    def total(self) -> int:
        """The samples of all ranks."""
        return self.manifest.samples

    @property
    def lanes(self) -> int:
        """The number of lanes of the order: chosen at the first start, then kept in the state."""
        if self.shuffle is None:
            return 1
        if self._lanes is None:
            self._lanes = self.shuffle.lanes_for(self.topology.dp_size)
        return self._lanes

    def order(self, epoch: int) -> Order:
        """The order of one epoch."""
        sizes = [shard.samples for shard in self.manifest.shards]
        reader = self.reader
        return Order(sizes, lambda shard: reader.index(shard).frame_first, self.shuffle, epoch, self.lanes)

    def build(self, raw: RawSample) -> Any:
        """The decoded and transformed sample of a key and its fields' bytes."""
        key, fields = raw
        sample: Sample = {"__key__": key}
        for name, data in fields.items():
            if self.decode:
                codec, dtype = self._kinds[name]
                sample[name] = decode_field(name, data, dtype=dtype, codec=codec, key=key)
            else:
                sample[name] = data
        return sample if self.transform is None else self.transform(sample)

    def __len__(self) -> int:
        """How many samples of an epoch this rank gets."""
        return rank_samples(self.total, self.topology.dp_rank, self.topology.dp_size)

    def __getitem__(self, number: int) -> Any:
        """Sample `number` in the natural order, of all ranks' samples."""
        total = self.total
        if not -total <= number < total:
            raise IndexError(f"sample {number} of {self.url}, which has {total}")
        key, fields = self.reader.sample(*self.reader.locate(number % total))
        wanted = {n: data for n, data in fields.items() if self.fields is None or n in self.fields}
        return self.build((key, wanted))

    def __iter__(self) -> Iterator[Any]:
        return self._deliver(self._cursor.begin())

    def _deliver(self, run: Run) -> Iterator[Any]:
        worker, workers = _worker()
        ranks = self.topology.dp_size
        mine = Ranks(self.topology.dp_rank + ranks * worker, ranks * workers)
        order = self.order(run.epoch)
        budget = Budget(keep=parse_size(self.cache.ram))
        if workers > 1:
            budget = replace(budget, threads=1)
        positions = _own(mine, run.position, order.total)
        chunks = (Chunk(*order.locate(some)) for some in positions)
        built = stream(self.reader, chunks, self._build_chunk, self.fields, budget)
        try:
            for samples in built:
                for sample in samples:
                    run.position = min(run.position + mine.dp_size, order.total)
                    yield sample
        finally:
            built.close()
        self._cursor.end(run)

    def _build_chunk(self, number: int, samples: list[RawSample]) -> list[Any]:
        return [self.build(sample) for sample in samples]

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate."""
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What was delivered by iterating the dataset: JSON-able, for `load_state_dict`."""
        return self.state_at(self._cursor.epoch, self._cursor.position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of this dataset, saved with any number of ranks."""
        self._cursor.place(*self.accept(state))

    def state_at(self, epoch: int, position: int) -> dict[str, Any]:
        """The state that says: `position` of `epoch` is the next to deliver."""
        place = {"version": STATE_VERSION, "epoch": epoch, "position": position}
        return place | self._identity() | {"lanes": self.lanes}

    def accept(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """The epoch and position of a state, whose lanes are taken over if none were asked for."""
        epoch, position = read_place(state)
        mine = self._identity()
        asked = 1 if self.shuffle is None else self.shuffle.lanes
        check_state(state, mine if asked is None else mine | {"lanes": asked})
        lanes = state.get("lanes")
        if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
            raise StateError(f"the state's lanes is {lanes!r}, not a number of at least 1")
        if position > self.total:
            raise StateError(f"the state's position is {position}, the dataset has {self.total} samples")
        self._lanes = lanes
        return epoch, position

    def _identity(self) -> dict[str, Any]:
        shuffle = self.shuffle
        return {
            "seed": None if shuffle is None else shuffle.seed,
            "window": None if shuffle is None else shuffle.window,
            "scope": None if shuffle is None else shuffle.scope,
            "fingerprint": self.manifest.fingerprint,
        }

    def __getstate__(self) -> dict[str, Any]:
        # Open files and locks stay behind: a worker process opens its own.
        return self.__dict__ | {"_reader": None}

    def __repr__(self) -> str:
        rank = f"rank {self.topology.dp_rank} of {self.topology.dp_size}"
        return f"StreamingDataset({self.url!r}, {self.total} samples, {rank})"


def _own(ranks: Ranks, start: int, total: int) -> Iterator[NDArray[np.int64]]:
    """The positions of one rank from `start` on, some at a time."""
    step = ranks.dp_size * _CHUNK
    for first in range(ranks.first(start), total, step):
        yield np.arange(first, min(first + step, total), ranks.dp_size, dtype=np.int64)


def _worker() -> tuple[int, int]:
    """The number of this DataLoader worker process and how many there are: (0, 1) outside."""
    data = sys.modules.get("torch.utils.data")
    info = None if data is None else data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _shuffle(value: bool | Shuffle) -> Shuffle | None:
    if isinstance(value, bool):
        return Shuffle() if value else None
    if isinstance(value, Shuffle):
        return value
    raise OptionError(f"shuffle={value!r} must be True, False or a Shuffle")


def _cache(value: Cache | str | os.PathLike[str] | None) -> Cache:
    if value is None or isinstance(value, Cache):
        return value or Cache()
    if isinstance(value, (str, os.PathLike)):
        return Cache(value)
    raise OptionError(f"cache={value!r} must be a Cache, a path or None")


def _topology(value: Ranks | str) -> Ranks:
    if isinstance(value, Ranks):
        return value
    if value == "auto":
        return Topology.detect()
    raise OptionError(f"topology={value!r} must be a Topology or 'auto'")
