"""What all datasets in a store share: a manifest, a reader, and an order of their own."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.access_plan import AccessPlan
from shardstream.dataset.batch_maker import BatchMaker
from shardstream.dataset.contents import Contents
from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.delivery import Delivery
from shardstream.dataset.frame_needs import FrameNeeds
from shardstream.dataset.interfaces import Draw
from shardstream.dataset.opening import Opening
from shardstream.dataset.requests import Request
from shardstream.dataset.transforms import Transform
from shardstream.errors import OptionError
from shardstream.format.manifest import Manifest
from shardstream.format.shards import shard_values
from shardstream.format.shown import counted
from shardstream.order.lanes import Order, distinct
from shardstream.order.reuse import Share
from shardstream.order.shuffle import Shuffle
from shardstream.read.engine.units import Source
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["StoredContents"]

Ints = NDArray[np.int64]
S = TypeVar("S", bound=Source, covariant=True)


class StoredContents(Contents[Order], Generic[S]):
    """The items of one dataset in a store.

    Args:
        opening: The dataset.
        shuffle: None for the natural order.
        rank: The place among the data-parallel ranks.
        function: The user's transform, or None.
    """

    def __init__(
        self,
        opening: Opening,
        shuffle: Shuffle | None,
        rank: DatasetRank,
        function: Callable[..., Any] | None,
    ) -> None:
        super().__init__(opening.url, shuffle, opening.cache, rank)
        self.opening = opening
        self.transform = self._transform_of(function)
        self._source: tuple[DatasetReader, S] | None = None
        self._needs: FrameNeeds | None = None
        self._maker: BatchMaker

    @property
    def reader(self) -> DatasetReader:
        """The reader behind it, opened anew in each process that it is sent to."""
        return self.opening.reader

    @property
    def manifest(self) -> Manifest:
        """The manifest of the dataset."""
        return self.opening.reader.manifest

    @property
    def maker(self) -> BatchMaker:
        """What makes batches of what units build."""
        return self._maker

    @abstractmethod
    def fit(self) -> None:
        """Take over what the manifest says; makes the `maker`."""

    @abstractmethod
    def _make_maker(self) -> BatchMaker: ...

    def set_transform(self, function: Callable[..., Any] | None) -> None:
        """Have another transform from the next iteration on."""
        self.transform = self._transform_of(function)
        self._maker = self._make_maker()

    def _transform_of(self, function: Callable[..., Any] | None) -> Transform:
        return Transform(function, self.url, 0 if self.shuffle is None else self.shuffle.seed)

    @property
    def source(self) -> S:
        """Where frames come from, opened anew in each process that it is sent to."""
        reader = self.reader
        if self._source is None or self._source[0] is not reader:
            self._source = reader, self._open_source(reader)
        return self._source[1]

    @abstractmethod
    def _open_source(self, reader: DatasetReader) -> S: ...

    @property
    def remote(self) -> bool:
        """Whether reading may have to wait for a store."""
        return not self.reader.all_local

    @abstractmethod
    def frames_of(self, shard: int, numbers: Ints) -> Ints:
        """The frames that these items of a shard lie in, each once, in the order of the items."""

    def located(self, order: Order, requests: Iterable[Request]) -> Iterator[tuple[Request, Ints, Ints]]:
        """Each request, and the shard of each of its items and its number there; their indexes are loaded."""
        for request in requests:
            self.reader.load_indexes(distinct(order.shards(request.positions)).tolist())
            yield request, *order.locate(request.positions)

    def draws(self, order: Order, positions: Ints) -> Iterator[Draw]:
        """All from this dataset."""
        yield Draw(self, order.epoch, order, positions)

    def share(self, shard: int) -> Share | None:
        """The frames of a shard that hold items of the dataset, roughly; None if all do."""
        return None

    @property
    def consulted(self) -> Iterable[int]:
        """The shards whose indexes are read before anything is iterated."""
        return ()

    def tell_needs(self, plan: AccessPlan[Order], delivery: Delivery, keep: int) -> None:
        """Tell the cache when frames are needed; `keep` bytes of them may stay in memory, decompressed."""
        epoch, order = plan.epoch, plan.order

        def at() -> tuple[int, int]:
            return epoch, order.total if delivery.ended else delivery.position

        once = delivery if self._all_open(order, keep) else None
        self.tell(FrameNeeds(self, order.lanes, epoch, at, lambda epoch: order.total, once))

    def tell(self, needs: FrameNeeds) -> None:
        """Let the cache know when frames are needed, for as long as the dataset lives."""
        self._needs = needs
        self.reader.ahead.begin_epoch(needs)

    def begins_epoch(self, epoch: int) -> None:
        """Another epoch of the dataset is going to be read: in a mixture one may follow the other."""
        if self._needs is not None and self._needs.begins_epoch(epoch):
            self.reader.ahead.continue_with(self._needs)

    def _all_open(self, order: Order, keep: int) -> bool:
        """Whether `keep` bytes hold the frames that the shuffle has open, so that each is read once."""
        if self.topology.dp_size > 1 or order.partial:
            return False
        window = 1 if order.shuffle is None else order.shuffle.window
        # A frame whose samples lie in two windows is open in both.
        shards = self.manifest.shards
        raw, frames = (np.asarray(shard_values(shards, name), np.int64) for name in ("raw_bytes", "frames"))
        largest = int((raw // np.maximum(frames, 1)).max(initial=0))
        return (window + 1) * order.lanes * largest <= keep

    def identity(self) -> dict[str, Any]:
        """What a state must agree with: the dataset and the options that decide the order."""
        shuffle = self.shuffle
        return {
            "seed": None if shuffle is None else shuffle.seed,
            "window": None if shuffle is None else shuffle.window,
            "scope": None if shuffle is None else shuffle.scope,
            "fingerprint": self.manifest.fingerprint,
        }

    def follow(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Read the dataset as it was for a state, if the cache has that manifest; returns what undoes it."""
        before = dict(vars(self))
        wanted = str(state.get("fingerprint") or "").partition("/")[0] if isinstance(state, Mapping) else ""

        def undo() -> None:
            vars(self).update(before)

        if wanted and wanted != self.manifest.fingerprint:
            found = self.opening.as_of(wanted)
            if found is not None:
                self.opening = found
                try:
                    self.fit()
                except BaseException as error:
                    undo()
                    if not isinstance(error, OptionError):
                        raise  # else what was asked for does not fit that manifest: the state is refused
        return undo

    def _described(self, items: dict[str, str], more: dict[str, str]) -> dict[str, str]:
        known = self.opening.known
        shards = {"shards": "manifest not loaded" if known is None else counted(len(known.shards), "shard")}
        shuffle = {"shuffle": f"shuffle={self.shuffle or False}"}
        return items | shards | more | shuffle | self.described_rank()

    def apart(self, cache: Cache) -> Self:
        """The same, with a reader of its own and another cache."""
        found = copy.copy(self)
        found.cache, found.opening = cache, self.opening.with_cache(cache)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # A copy opens the dataset for itself.
        return self.__dict__ | {
            "opening": self.opening.with_cache(self.cache),
            "_source": None,
            "_needs": None,
        }
