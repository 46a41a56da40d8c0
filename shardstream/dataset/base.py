"""What all datasets share: an order, a place in it, and the state that says so."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.distributed import Topology
from shardstream.errors import OptionError, StateError
from shardstream.format.manifest import Manifest
from shardstream.order.cursor import STATE_VERSION, Cursor, Run, check_state, read_place
from shardstream.order.lanes import Order
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.order.topology import rank_samples
from shardstream.order.uses import next_uses
from shardstream.read.engine import Budget, Source, Stats, Unit, stream
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache import Cache

if TYPE_CHECKING:

    class _Iterable: ...

else:
    try:
        # DataLoader recognises an iterable dataset by this class and by nothing else.
        from torch.utils.data import IterableDataset as _Iterable
    except ImportError:
        _Iterable = object

__all__ = ["Cache", "OrderedDataset", "Request"]

Options = dict[str, Any] | None


class Request(NamedTuple):
    """Some consecutive batches: the positions of all of them, int64, and the size of each."""

    positions: NDArray[np.int64]
    sizes: list[int]


class OrderedDataset(_Iterable):
    """A dataset whose items have positions 0 .. total - 1 in each epoch."""

    def __init__(
        self,
        url: str | os.PathLike[str],
        shuffle: bool | Shuffle,
        cache: Cache | str | os.PathLike[str] | None,
        topology: Ranks | str,
        storage_options: Options,
    ) -> None:
        self.url = os.fspath(url)
        self.shuffle = _shuffle(shuffle)
        self.cache = _cache(cache)
        self.topology = _topology(topology)
        self._storage_options = storage_options
        self._process = os.getpid()
        self._reader: DatasetReader | None = None
        self._source: Source | None = None
        self._cursor = Cursor()
        self._lanes: int | None = None if self.shuffle is None else self.shuffle.lanes

    @property
    def reader(self) -> DatasetReader:
        """The reader behind the dataset, opened anew in each process that it is sent to."""
        self._leave_parent()
        if self._reader is None:
            self._reader = DatasetReader.open(self.url, self._storage_options, self.cache)
        return self._reader

    @property
    def manifest(self) -> Manifest:
        """The manifest of the dataset."""
        return self.reader.manifest

    @property
    def total(self) -> int:
        """The items of all ranks."""
        raise NotImplementedError

    @property
    def ahead(self) -> int:
        """How many items are best planned at once."""
        raise NotImplementedError

    def order(self, epoch: int) -> Order:
        """The order of one epoch."""
        raise NotImplementedError

    @property
    def source(self) -> Any:
        """Where frames come from, opened anew in each process that the dataset is sent to."""
        self._leave_parent()
        if self._source is None:
            self._source = self._open_source()
        return self._source

    def _leave_parent(self) -> None:
        # After a fork, what the parent's threads were doing is never finished here.
        if self._process != os.getpid():
            self._process, self._reader, self._source = os.getpid(), None, None

    def _open_source(self) -> Source:
        raise NotImplementedError

    def frames_of(self, shard: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames that these items of a shard lie in, each once, in the order of the items."""
        raise NotImplementedError

    def units(self, order: Order, requests: Iterable[Request], direct: bool) -> Iterator[Unit]:
        """The work for all requests; `direct` allows work that the consumer does by itself."""
        raise NotImplementedError

    def stream(
        self,
        epoch: int,
        requests: Iterable[Request],
        finish: Callable[[Any], Any],
        budget: Budget,
        stats: Stats | None = None,
        direct: bool = False,
    ) -> Generator[Any, None, None]:
        """The batches of all requests, in order; each is `finish(items)`.

        `finish` is called in threads, or where it is quick and `direct` says so, by the consumer.
        """
        order, coming = self.order(epoch), deque[int]()
        units = self.units(order, _noted(requests, coming), direct)
        self._plan(order, coming)
        built = stream(self.source, units, finish, budget, stats)
        try:
            for batch in built:
                coming.popleft()
                yield batch
        finally:
            built.close()

    def _plan(self, order: Order, coming: deque[int]) -> None:
        """Tell the cache when frames are needed next; `coming` begins with the position of the next batch."""
        following = self.order(min(order.epoch + 1, 2**64 - 1))
        shards, total = self.manifest.shards, max(1, self.total)

        def uses(shard: int) -> NDArray[np.float64]:
            try:
                now = coming[0] / total
            except IndexError:  # nothing planned, or all delivered
                now = 0.0
            return next_uses(order, following, shard, shards[shard].frames, now)

        self.reader.plan(uses)

    def collated(self, collate: Callable[[list[Any]], Any] | None) -> Callable[[Any], Any]:
        """The `finish` that makes batches by `collate`, or by the dataset's own way."""
        raise NotImplementedError

    def items(self, batch: Any) -> Iterable[Any]:
        """The single items of what `stream` makes where `finish` does nothing."""
        raise NotImplementedError

    @property
    def lanes(self) -> int:
        """The number of lanes of the order: chosen at the first start, then kept in the state."""
        if self.shuffle is None:
            return 1
        if self._lanes is None:
            self._lanes = self.shuffle.lanes_for(self.topology.dp_size)
        return self._lanes

    def __len__(self) -> int:
        """How many items of an epoch this rank gets."""
        return rank_samples(self.total, self.topology.dp_rank, self.topology.dp_size)

    def __iter__(self) -> Iterator[Any]:
        return self._deliver(self._cursor.begin())

    def _deliver(self, run: Run) -> Iterator[Any]:
        worker, workers = _worker()
        ranks = self.topology.dp_size
        mine = Ranks(self.topology.dp_rank + ranks * worker, ranks * workers)
        total = self.total
        budget = Budget(keep=self.cache.keep)
        if workers > 1:
            budget = replace(budget, threads=1)
        requests = _own(mine, run.position, total, self.ahead)
        built = self.stream(run.epoch, requests, _unchanged, budget, direct=True)
        try:
            for batch in built:
                for item in self.items(batch):
                    run.position = min(run.position + mine.dp_size, total)
                    yield item
        finally:
            built.close()
        self._cursor.end(run)

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
        return place | self.identity() | {"lanes": self.lanes}

    def accept(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """The epoch and position of a state, whose lanes are taken over if none were asked for."""
        epoch, position = read_place(state)
        mine = self.identity()
        asked = 1 if self.shuffle is None else self.shuffle.lanes
        check_state(state, mine if asked is None else mine | {"lanes": asked})
        lanes = state.get("lanes")
        if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
            raise StateError(f"the state's lanes is {lanes!r}, not a number of at least 1")
        if position > self.total:
            raise StateError(f"the state's position is {position}, the dataset has {self.total} samples")
        self._lanes = lanes
        return epoch, position

    def identity(self) -> dict[str, Any]:
        """What a state must agree with: the dataset and the options that decide the order."""
        shuffle = self.shuffle
        return {
            "seed": None if shuffle is None else shuffle.seed,
            "window": None if shuffle is None else shuffle.window,
            "scope": None if shuffle is None else shuffle.scope,
            "fingerprint": self.manifest.fingerprint,
        }

    def __getstate__(self) -> dict[str, Any]:
        # Open files and locks stay behind: a worker process opens its own.
        return self.__dict__ | {"_reader": None, "_source": None}

    def __repr__(self) -> str:
        rank = f"rank {self.topology.dp_rank} of {self.topology.dp_size}"
        return f"{type(self).__name__}({self.url!r}, {self.total} samples, {rank})"


def _unchanged(items: Any) -> Any:
    return items


def _noted(requests: Iterable[Request], coming: deque[int]) -> Iterator[Request]:
    """The requests; the position of each of their batches is added to `coming`."""
    for request in requests:
        begin = 0
        for size in request.sizes:
            coming.append(int(request.positions[begin]) if size else 0)
            begin += size
        yield request


def in_order(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each value once, where it comes first."""
    found, first = np.unique(values, return_index=True)
    return found[np.argsort(first)]


def _own(ranks: Ranks, start: int, total: int, most: int) -> Iterator[Request]:
    """The positions of one rank from `start` on, one at first and then more and more at a time."""
    first, count = ranks.first(start), 1
    while first < total:
        positions = np.arange(first, min(first + count * ranks.dp_size, total), ranks.dp_size, dtype=np.int64)
        yield Request(positions, [len(positions)])
        first, count = first + count * ranks.dp_size, min(2 * count, most)


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
