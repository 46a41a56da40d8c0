"""What all datasets share: an order, a place in it, and the state that says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset import workers
from shardstream.dataset.arguments import cache_of, shuffle_of, topology_of
from shardstream.dataset.coming import Coming, Request, requests_of
from shardstream.dataset.iteration import Iteration
from shardstream.errors import StateError, noted
from shardstream.format.manifest import Manifest
from shardstream.order.cursor import STATE_VERSION, Run, check_state, read_place
from shardstream.order.lanes import Order, distinct
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.order.topology import rank_samples
from shardstream.read.engine import Budget, Source, Stats, Unit, stream
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache import Cache
from shardstream.storage.remote import redact

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


class OrderedDataset(_Iterable):
    """A dataset whose items have positions 0 .. total - 1 in each epoch."""

    endless = False  # whether an epoch never ends; `total` is then a number that is never reached

    def __init__(
        self,
        url: str | os.PathLike[str],
        shuffle: bool | Shuffle,
        cache: Cache | str | os.PathLike[str] | None,
        topology: Ranks | str,
        storage_options: Options,
    ) -> None:
        self._location = os.fspath(url)
        self.url = redact(self._location)  # as it may be shown
        self.shuffle = shuffle_of(shuffle)
        self.cache = cache_of(cache)
        self.topology = topology_of(topology)
        self._storage_options = storage_options
        self._process = os.getpid()
        self._reader: DatasetReader | None = None
        self._source: Source | None = None
        self._cursor = workers.WorkerCursor()
        self._lanes: int | None = None if self.shuffle is None else self.shuffle.lanes

    @property
    def reader(self) -> DatasetReader:
        """The reader behind the dataset, opened anew in each process that it is sent to."""
        self._leave_parent()
        if self._reader is None:
            self._reader = DatasetReader.open(self._location, self._storage_options, self.cache)
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

    def order(self, epoch: int, lanes: int | None = None) -> Any:
        """The order of one epoch, an Order; in so many lanes, or in the dataset's own number."""
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

    def units(self, order: Any, requests: Iterable[Request], direct: bool) -> Iterator[Unit]:
        """The work for all requests; `direct` allows work that the consumer does by itself."""
        raise NotImplementedError

    def located(
        self, order: Order, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, NDArray[np.int64], NDArray[np.int64]]]:
        """Each request, and the shard of each of its items and its number there; their indexes are loaded."""
        for request in requests:
            self.reader.load(distinct(order.shards(request.positions)).tolist())
            yield request, *order.locate(request.positions)

    def stream(
        self,
        epoch: int,
        requests: Iterable[Request],
        finish: Callable[[Any], Any],
        budget: Budget,
        stats: Stats | None = None,
        direct: bool = False,
        source: Source | None = None,
    ) -> Generator[Any, None, None]:
        """The batches of all requests, in order; each is `finish(items)`.

        `finish` is called in threads, or where it is quick and `direct` says so, by the consumer.
        source: where frames come from, if not from the dataset's own source.
        """
        order, source = self.order(epoch), source or self.source
        if not self.remote:
            return stream(source, self.units(order, requests, direct), finish, budget, stats)
        coming = Coming(self, order, budget.keep)
        units = self.units(order, coming.requests(requests), direct)
        return coming.delivered(stream(source, units, finish, budget, stats))

    @property
    def remote(self) -> bool:
        """Whether reading may be waiting for a store."""
        return not self.reader.all_local

    def collated(self, collate: Callable[[list[Any]], Any] | None) -> Callable[[Any], Any]:
        """The `finish` that makes batches by `collate`, or by the dataset's own way."""
        raise NotImplementedError

    def listed(self, items: Any) -> Any:
        """The `finish` of those who want single items: what `items` takes them from."""
        return items

    def noting(self, collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        """A user's `collate` whose errors name the batch."""

        def collated(items: list[Any]) -> Any:
            keys = [item["__key__"] for item in items if isinstance(item, dict) and "__key__" in item]
            named = f", samples {keys[0]!r} to {keys[-1]!r}," if keys else ""
            with noted(f"in the collate of {len(items)} items{named} of {self.url}"):
                return collate(items)

        return collated

    def items(self, batch: Any) -> Iterable[Any]:
        """The single items of what `listed` made."""
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
        if self.endless:
            raise TypeError(f"an epoch of {self.url} never ends: it has no length")
        return rank_samples(self.total, self.topology.dp_rank, self.topology.dp_size)

    def __iter__(self) -> Iteration:
        run = self._cursor.begin()
        self._take_turn(run)
        return Iteration(self, run)

    def _take_turn(self, run: Run) -> None:
        """In a worker process, go from the rank's place to the next item of the worker alone."""
        worker = workers.current()
        if worker is not None and not run.own:
            # Counted from the rank's next item, so that taking one of each worker in turn, as a
            # DataLoader does, gives the rank's order.
            first = self.topology.first(run.position) + self.topology.dp_size * worker.number
            run.position, run.own = min(first, self.total), True

    def deliver(self, run: Run) -> Generator[Any, None, None]:
        """The items of this rank, or of this worker process of it, from the place of `run` on."""
        mine, total = self.topology, self.total
        budget = Budget(keep=self.cache.keep)
        worker = workers.current()
        if worker is not None:
            budget = replace(budget, threads=1) if worker.size > 1 else budget
            stride = mine.dp_size * worker.size
            mine = Ranks(run.position % stride, stride)
        requests = requests_of(mine, run.position, total, self.ahead)
        built = self.stream(run.epoch, requests, self.listed, budget, direct=True)
        try:
            for batch in built:
                for item in self.items(batch):
                    run.position = min(run.position + mine.dp_size, total)
                    yield item
        finally:
            built.close()
        run.position = total
        self._cursor.end(run)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate, also in worker processes that already run."""
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What was delivered by iterating the dataset: JSON-able, for `load_state_dict`.

        In a DataLoader's worker process it is the state of that worker. Raises StateError where
        workers deliver: only their DataLoader could know how far they came.
        """
        if self._cursor.away:
            raise StateError(
                f"{self.url} is being read by the workers of a DataLoader, which does not tell how far they "
                f"came; use a StreamingLoader, or torchdata's StatefulDataLoader and its state_dict()"
            )
        return self.state_at(self._cursor.now)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of this dataset, saved with any number of ranks.

        The state of a worker process is for the same worker of as many.
        """
        self._cursor.place(*self.accept(state, worker=True))

    def restart(self, run: Run, state: Mapping[str, Any]) -> None:
        """Let an iteration that has begun go on from a state."""
        self._cursor.restart(run, *self.accept(state, worker=True))
        self._take_turn(run)

    def state_at(self, run: Run) -> dict[str, Any]:
        """The state that says: the place of `run` is the next to deliver."""
        place = {"version": STATE_VERSION, "epoch": run.epoch, "position": run.position}
        worker = workers.current()
        mine = {} if worker is None or not run.own else {"worker": worker.number, "workers": worker.size}
        return place | mine | self.identity() | {"lanes": self.lanes}

    def accept(self, state: Mapping[str, Any], worker: bool = False) -> tuple[int, int, bool]:
        """The epoch and position of a state, and whether the position is that of a worker process.

        Its lanes are taken over if none were asked for.  worker: a worker's state is welcome, too.
        """
        epoch, position = read_place(state)
        own = "workers" in state
        here = workers.current() if worker else None
        place = {"workers": here and here.size, "worker": here and here.number} if own else {}
        mine = self.identity()
        asked = 1 if self.shuffle is None else self.shuffle.lanes
        check_state(state, place | (mine if asked is None else mine | {"lanes": asked}))
        lanes = state.get("lanes")
        if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
            raise StateError(f"the state's lanes is {lanes!r}, not a number of at least 1")
        before, self._lanes = self._lanes, lanes
        total = self.total  # of a mixture it depends on the lanes
        if position > total:
            self._lanes = before
            raise StateError(f"the state's position is {position}, the dataset has {total} samples")
        return epoch, position, own

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
