"""What the plan of reads knows of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstream.format.manifest import Manifest
from shardstream.order.lanes import Order
from shardstream.order.reuse import Share
from shardstream.order.topology import Topology
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache

__all__ = ["Draw", "Drawn", "Part"]

Ints = NDArray[np.int64]
OrderT = TypeVar("OrderT")  # the order of one epoch


class Part(Protocol):
    """A dataset in a store: it is read by itself, or as a part of a mixture."""

    @property
    def url(self) -> str:
        """Where it is, as it may be shown."""

    @property
    def cache(self) -> Cache:
        """Its cache."""

    @property
    def reader(self) -> DatasetReader:
        """The reader behind it, opened anew in each process that it is sent to."""

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""

    @property
    def topology(self) -> Topology:
        """The place among the data-parallel ranks, as far as it is known."""

    @property
    def remote(self) -> bool:
        """Whether reading may have to wait for a store."""

    @property
    def consulted(self) -> Iterable[int]:
        """The shards whose indexes are read before anything is iterated."""

    def order(self, epoch: int, lanes: int | None = None) -> Order:
        """The order of one epoch, in so many lanes or in its own number."""

    def share(self, shard: int) -> Share | None:
        """The frames of a shard that hold items of it, roughly; None if all do."""

    def frames_of(self, shard: int, numbers: Ints) -> Ints:
        """The frames that these items of a shard lie in, each once, in the order of the items."""

    def begins_epoch(self, epoch: int) -> None:
        """Another epoch of it is going to be read: in a mixture one may follow the other."""


class Draw(NamedTuple):
    """What some positions draw from one epoch of one dataset."""

    part: Part
    epoch: int
    order: Order
    positions: Ints


class Drawn(Protocol[OrderT]):
    """A dataset, a subset or a mixture: from which datasets its positions draw."""

    def order(self, epoch: int, lanes: int | None = None) -> OrderT:
        """The order of one epoch."""

    def draws(self, order: OrderT, positions: Ints) -> Iterator[Draw]:
        """What these positions draw from each dataset."""
