"""The order of one epoch of a mixture, and the orders of its datasets that it draws from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.delivery import Delivery
from shardstream.dataset.frame_needs import FrameNeeds
from shardstream.dataset.stored import StoredContents
from shardstream.memory import RecentValues
from shardstream.order.lanes import Order, groups
from shardstream.order.mixture import ENDLESS, Draws, MixtureOrder
from shardstream.read.engine.units import Source

__all__ = ["MixedOrder", "grouped"]

_ORDERS = 3  # epochs of a dataset whose order stays in memory: a batch may lie in two


class MixedOrder:
    """The order of one epoch of a mixture.

    Args:
        plan: Which positions draw from which dataset.
        parts: The datasets.
        epoch: Of the mixture.
        endless: Whether its epoch never ends.
    """

    def __init__(
        self, plan: MixtureOrder, parts: Sequence[StoredContents[Source]], epoch: int, endless: bool
    ) -> None:
        self.plan, self._parts, self.total = plan, parts, plan.total
        # Later epochs of the mixture go on with epochs of the datasets that were not yet begun.
        turns = [1 << 32 if endless else plan.turns(number) for number in range(len(parts))]
        self.first = [epoch * count for count in turns]
        self._turns = turns
        # Objects of a few hundred bytes: the windows that they make count in the budgets of the datasets.
        self._orders: list[RecentValues[int, Order]] = [RecentValues(lambda _: 1, _ORDERS) for _ in parts]

    def of(self, number: int, epoch: int) -> Order:
        """The order of a dataset in its epoch `epoch`, counted within this epoch of the mixture."""
        orders = self._orders[number]
        found = orders.get(epoch)
        if found is not None:
            return found
        return orders.put(epoch, self._parts[number].order(self.first[number] + epoch, self.plan.lanes))

    def tell_needs(self, number: int, part: StoredContents[Source], delivery: Delivery) -> None:
        """Tell the cache of a dataset when its frames are needed, as far as a stream has come."""
        # Not the order itself, which refers to the dataset.
        plan, first, last = self.plan, self.first[number], self.first[number] + self._turns[number] - 1
        size, ends = part.total, None if plan.total == ENDLESS else plan.drawn(number, plan.total)

        def at() -> tuple[int, int]:
            if delivery.ended:
                return last, size
            epoch, position = divmod(plan.drawn(number, delivery.position), size)
            return first + epoch, position

        def until(epoch: int) -> int:
            return size if ends is None else min(size, ends - (epoch - first) * size)

        share = plan.schedule.shares[number] / plan.schedule.period
        scale = size / share / plan.total if ends is not None else size / share / max(plan.sizes)
        part.tell(FrameNeeds(part, plan.lanes, first, at, until, scale=scale))


def grouped(draws: Draws) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """(dataset, epoch, rows) of some draws."""
    for number, rows in groups(draws.dataset):
        for epoch, some in groups(draws.epoch[rows]):
            yield number, epoch, rows[some]
