"""Mixture: several datasets in fixed proportions, as one dataset."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from shardstream.dataset.base import OrderedDataset, Request
from shardstream.dataset.mixed import SOURCE, MixedSource, MixedUnit, Part
from shardstream.dataset.tokens import TokenDataset
from shardstream.errors import OptionError
from shardstream.order.lanes import Order, groups
from shardstream.order.mixture import ENDLESS, MixtureOrder, Schedule, shares
from shardstream.order.shuffle import Shuffle
from shardstream.read.batch import collate as default_collate
from shardstream.read.batch import tensor
from shardstream.read.engine import Unit
from shardstream.read.segments import FLAT
from shardstream.storage.cache import Cache

__all__ = ["SOURCE", "Mixture"]

_UNIT = 4 << 20  # bytes of batches that one thread builds at a time
_ORDERS = 3  # epochs of a dataset whose order is kept: two meet where one ends


class Mixture(OrderedDataset):
    """Samples of several datasets, each with its part of all positions.

    datasets: {dataset: weight} or [(dataset, weight), ...]. Weights are relative. Proportions are exact
        if they have a common denominator of at most 65,536, else rounded to multiples of 1 / 65,536;
        `shares` holds them as whole numbers.
    stop: "first" ends an epoch when the first dataset has been read completely; "all" when the last has,
        and the others begin their next epochs, reshuffled; "never" never.

    Each sample and batch says in "__source__" which dataset it came from: its number, in a batch a tensor
    [B]. TokenDatasets of the same seq_len and dtype give one tensor "tokens" per batch.
    """

    def __init__(
        self,
        datasets: Mapping[OrderedDataset, float] | Sequence[tuple[OrderedDataset, float]],
        stop: str = "first",
    ) -> None:
        pairs = list(datasets.items() if isinstance(datasets, Mapping) else datasets)
        if not pairs:
            raise OptionError("a mixture needs at least one dataset")
        if stop not in ("first", "all", "never"):
            raise OptionError(f"stop={stop!r} must be 'first', 'all' or 'never'")
        self.datasets, self.stop = [ds for ds, _ in pairs], stop
        for ds in self.datasets:
            if not isinstance(ds, OrderedDataset) or isinstance(ds, Mixture):
                raise OptionError(f"{ds!r} is not a StreamingDataset or TokenDataset")
            if not ds.total:
                raise OptionError(f"{ds.url} is empty and cannot be part of a mixture")
        self.shares = shares([weight for _, weight in pairs])
        first = self.datasets[0]
        super().__init__(
            f"Mixture({', '.join(ds.url for ds in self.datasets)})",
            _shuffle(self.datasets),
            Cache(ram=max(ds.cache.keep for ds in self.datasets)),
            first.topology,
            None,
        )
        for ds in self.datasets:
            if ds.topology != first.topology:
                raise OptionError(f"the datasets differ in topology: {first.topology} and {ds.topology}")
        self.endless = stop == "never"
        self._schedule = Schedule(self.shares)
        self._plans: dict[int, MixtureOrder] = {}

    @property
    def total(self) -> int:
        """The samples of an epoch, of all ranks."""
        return ENDLESS if self.endless else self._mixed(self.lanes).total

    @property
    def ahead(self) -> int:
        """How many items are best planned at once."""
        return max(1, min(_UNIT // max(1, _item_bytes(ds)) for ds in self.datasets))

    def _mixed(self, lanes: int) -> MixtureOrder:
        if lanes not in self._plans:
            sizes = [ds.total for ds in self.datasets]
            self._plans = {lanes: MixtureOrder(self._schedule, sizes, lanes, self.stop)}
        return self._plans[lanes]

    def order(self, epoch: int, lanes: int | None = None) -> MixedOrder:
        """The order of one epoch."""
        lanes = lanes or self.lanes
        return MixedOrder(self._mixed(lanes), self.datasets, epoch, self.endless)

    @property
    def remote(self) -> bool:
        """False: the next uses of frames are not told for mixtures."""
        return False

    def _open_source(self) -> MixedSource:
        return MixedSource([ds.source for ds in self.datasets])

    def units(self, order: MixedOrder, requests: Iterable[Request], direct: bool) -> Iterator[Unit]:
        """The work for all requests, each made of the work of the datasets."""
        for request in requests:
            draws = order.plan.locate(request.positions)
            batch = np.repeat(np.arange(len(request.sizes)), request.sizes)
            parts = []
            for number, rows in groups(draws.dataset):
                for epoch, some in groups(draws.epoch[rows]):
                    mine = rows[some]
                    counts = np.bincount(batch[mine], minlength=len(request.sizes))
                    wanted = Request(draws.position[mine], counts[counts > 0].tolist())
                    ds = self.datasets[number]
                    units = list(ds.units(order.of(number, epoch), [wanted], False))
                    parts.append(Part(number, ds, mine, counts.tolist(), units))
            yield MixedUnit(request.sizes, draws.dataset, parts, self.tensors)

    @property
    def tensors(self) -> bool:
        """Whether a batch is one tensor: token datasets of one shape, whose blocks nothing changes."""
        shapes = {ds.row_shape if isinstance(ds, TokenDataset) else None for ds in self.datasets}
        return len(shapes) == 1 and None not in shapes

    def collated(self, collate: Callable[[list[Any]], Any] | None) -> Callable[[Any], Any]:
        """The `finish` that makes a batch of the rows of tensors, or collates samples."""
        if collate is None and self.tensors:
            return _tensors
        join = collate or default_collate
        return lambda items: join(list(self.items(items)))

    def items(self, batch: Any) -> Iterable[Any]:
        """The single samples of a batch as units build it."""
        if not self.tensors:
            return batch  # type: ignore[no-any-return]
        columns = {name: column for name, column in batch.items() if name not in FLAT}
        return map(_row, repeat(list(columns)), zip(*columns.values(), strict=True))

    def identity(self) -> dict[str, Any]:
        """What a state must agree with: the proportions, and the identity of each dataset."""
        return {
            "stop": self.stop,
            "shares": self.shares,
            "datasets": [ds.identity() for ds in self.datasets],
        }

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_plans": {}}


class MixedOrder:
    """The order of one epoch of a mixture, and the orders of its datasets that it draws from."""

    def __init__(
        self, plan: MixtureOrder, datasets: Sequence[OrderedDataset], epoch: int, endless: bool
    ) -> None:
        self.plan, self._datasets, self.total = plan, datasets, plan.total
        # Later epochs of the mixture go on with epochs of the datasets that were not yet begun.
        turns = [1 << 32 if endless else plan.turns(number) for number in range(len(datasets))]
        self._first = [epoch * count for count in turns]
        self._orders: list[OrderedDict[int, Order]] = [OrderedDict() for _ in datasets]

    def of(self, number: int, epoch: int) -> Order:
        """The order of a dataset in its epoch `epoch`, counted within this epoch of the mixture."""
        held = self._orders[number]
        found = held.pop(epoch, None)
        if found is None:
            found = self._datasets[number].order(self._first[number] + epoch, self.plan.lanes)
        held[epoch] = found
        while len(held) > _ORDERS:
            held.popitem(last=False)
        return found


def _tensors(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns as tensors."""
    return {
        name: tensor(column) if isinstance(column, np.ndarray) else column for name, column in columns.items()
    }


def _row(names: list[str], values: tuple[Any, ...]) -> dict[str, Any]:
    """One sample of a batch's columns."""
    return {
        name: int(value) if name == SOURCE else tensor(value)
        for name, value in zip(names, values, strict=True)
    }


def _item_bytes(ds: OrderedDataset) -> int:
    """The bytes of a sample, on average."""
    if isinstance(ds, TokenDataset):
        return ds.item_bytes
    return ds.manifest.raw_bytes // max(1, ds.manifest.samples)


def _shuffle(datasets: Sequence[OrderedDataset]) -> bool | Shuffle:
    """What decides the lanes of a mixture; the order of each dataset is its own."""
    shuffles = [ds.shuffle for ds in datasets if ds.shuffle is not None]
    asked = {shuffle.lanes for shuffle in shuffles if shuffle.lanes is not None}
    if len(asked) > 1:
        raise OptionError(f"the datasets differ in lanes: {sorted(asked)}; a mixture has one number of lanes")
    return Shuffle(lanes=asked.pop() if asked else None) if shuffles else False
