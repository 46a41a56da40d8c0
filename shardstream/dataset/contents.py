"""What is read when a dataset is read: the internal object behind each public one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.access_plan import AccessPlan
from shardstream.dataset.batch_maker import BatchMaker
from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.delivery import Delivery
from shardstream.dataset.interfaces import Draw
from shardstream.dataset.requests import Request, UnitOptions
from shardstream.dataset.worker_epochs import current_worker
from shardstream.distributed import agree
from shardstream.errors import ShardstreamError
from shardstream.order.cursor import Run
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.read.engine.units import Source, Unit
from shardstream.storage.cache.options import Cache

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Contents"]

OrderT = TypeVar("OrderT")  # the order of one epoch


class Contents(ABC, Generic[OrderT]):
    """Items at positions 0 .. total - 1 of each epoch: their order, and the work that reads them.

    The public classes are faces of it. The loaders, `warm` and the integrations get it by
    `dataset.contents_of`. A place in it, the cursor, is not part of it.

    Args:
        url: As it may be shown.
        shuffle: None for the natural order.
        cache: Where bytes stay.
        rank: The place among the data-parallel ranks.
    """

    endless = False  # whether an epoch never ends; `total` is then a number that is never reached

    def __init__(self, url: str, shuffle: Shuffle | None, cache: Cache, rank: DatasetRank) -> None:
        self.url, self.shuffle, self.cache, self.rank = url, shuffle, cache, rank
        self.kind = type(self).__name__  # what ranks compare their notes as: the name of the public class
        self._lanes: int | None = None if shuffle is None else shuffle.lanes

    # The place among the ranks

    @property
    def topology(self) -> Ranks:
        """The place among the ranks; "auto" is asked until the dataset is first used."""
        return self.rank.now

    def decide(self) -> Ranks:
        """The place among the ranks, which now stays; raises OptionError if it was used as another one."""
        return self.rank.decide(self.url)

    def start(self) -> Ranks:
        """Decide the place among the ranks, and compare notes with them; for each that iterates."""
        ranks = self.decide()
        if ranks.dp_size > 1 and current_worker() is None:
            agree(f"{self.kind} {self.url}", self.identity(), ranks.dp_size)
        return ranks

    def placed(self) -> Self:
        """The same as another process reads it for this rank, whatever that process knows of ranks."""
        found = copy.copy(self)
        found.rank = DatasetRank(self.decide())
        return found

    def without_views(self) -> Self:
        """The same with bytes where values are views of memory."""
        return self

    # The order

    @property
    @abstractmethod
    def total(self) -> int:
        """The items of all ranks."""

    @property
    @abstractmethod
    def planned_at_once(self) -> int:
        """How many items are best planned at once."""

    @property
    def lanes(self) -> int:
        """The number of lanes of the order: chosen at the first start, then part of the state."""
        if self.shuffle is None:
            return 1
        if self._lanes is not None:
            return self._lanes
        lanes = self.shuffle.lanes_for(self.topology.dp_size)
        if self.rank.decided:
            self._lanes = lanes
        return lanes

    def take_lanes(self, lanes: int | None) -> int | None:
        """Have so many lanes, None for those that will be chosen; returns what it was before."""
        before, self._lanes = self._lanes, lanes
        return before

    @abstractmethod
    def order(self, epoch: int, lanes: int | None = None) -> OrderT:
        """The order of one epoch, in so many lanes or in its own number."""

    @abstractmethod
    def draws(self, order: OrderT, positions: NDArray[np.int64]) -> Iterator[Draw]:
        """What these positions draw from each dataset."""

    def passes(self, now: Run, count: int) -> Iterator[tuple[int, int, int]]:
        """(epoch, from, to) of the positions of so many epochs, from a place on."""
        for number in range(count):
            yield now.epoch + number, now.position if not number else 0, self.total

    # The work

    @property
    @abstractmethod
    def source(self) -> Source:
        """Where frames come from, opened anew in each process that it is sent to."""

    @property
    @abstractmethod
    def remote(self) -> bool:
        """Whether reading may have to wait for a store."""

    @property
    @abstractmethod
    def maker(self) -> BatchMaker:
        """What makes batches of what units build."""

    @abstractmethod
    def units(self, order: OrderT, requests: Iterable[Request], options: UnitOptions) -> Iterator[Unit]:
        """The work for all requests."""

    @abstractmethod
    def tell_needs(self, plan: AccessPlan[OrderT], delivery: Delivery, keep: int) -> None:
        """Tell the cache when frames are needed; `keep` bytes of them may stay in memory, decompressed."""

    # The state

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a state must agree with: the dataset and the options that decide the order."""

    @abstractmethod
    def follow(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Read the dataset as it was for a state, if the cache has that manifest; returns what undoes it."""

    # What people see

    @abstractmethod
    def described(self) -> dict[str, str]:
        """What a person wants to know of it, by name; opens nothing and raises nothing."""

    def described_rank(self) -> dict[str, str]:
        """The place among the ranks, as far as it is known."""
        try:
            ranks = self.topology
        except ShardstreamError:  # what libraries and launchers say contradicts itself
            return {"rank": "rank unknown"}
        return {"rank": f"rank {ranks.dp_rank} of {ranks.dp_size}"}
