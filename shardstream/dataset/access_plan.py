"""One plan of what is read of a dataset, a subset or a mixture in an epoch.

A stream fetches indexes ahead by it. The cache decides by it which frames stay. `warm` fetches by it what
ranks are going to read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.delivery import Delivery
from shardstream.dataset.interfaces import Drawn, Part
from shardstream.dataset.requests import Request
from shardstream.order.lanes import distinct, groups, in_order

__all__ = ["AccessPlan"]

Ints = NDArray[np.int64]
OrderT = TypeVar("OrderT")  # the order of one epoch


class AccessPlan(Generic[OrderT]):
    """One epoch of a dataset, a subset or a mixture: which frames of which shards are read, and when."""

    def __init__(self, drawn: Drawn[OrderT], epoch: int) -> None:
        self._drawn, self.epoch, self.order = drawn, epoch, drawn.order(epoch)

    def shards(self, positions: Ints) -> list[tuple[Part, list[int]]]:
        """The shards that these positions lie in, by dataset, in the order of need; asks for no index."""
        return [
            (draw.part, in_order(draw.order.shards(draw.positions)).tolist())
            for draw in self._drawn.draws(self.order, positions)
        ]

    def frames(self, positions: Ints) -> Iterator[tuple[Part, int, Ints]]:
        """(dataset, shard, frames) that these positions are read from, by need; the indexes are loaded."""
        for draw in self._drawn.draws(self.order, positions):
            draw.part.reader.load_indexes(distinct(draw.order.shards(draw.positions)).tolist())
            shards, numbers = draw.order.locate(draw.positions)
            found = [(int(rows[0]), shard, rows) for shard, rows in groups(shards)]
            for _, shard, rows in sorted(found, key=lambda one: one[0]):
                yield draw.part, shard, draw.part.frames_of(shard, numbers[rows])

    def requests(self, requests: Iterable[Request], delivery: Delivery) -> Iterator[Request]:
        """The requests; the indexes of each and of the one after it are on their way.

        In front of the first request only its own indexes are: the first batch shares the link with nothing.
        """
        remaining = iter(requests)
        ahead: deque[Request] = deque()
        most = 1
        while True:
            while len(ahead) < most and (request := next(remaining, None)) is not None:
                ahead.append(request)
                for draw in self._drawn.draws(self.order, request.positions):
                    draw.part.begins_epoch(draw.epoch)
                    draw.part.reader.fetch_indexes_ahead(distinct(draw.order.shards(draw.positions)).tolist())
            if not ahead:
                return
            delivery.planned(ahead[0])
            yield ahead.popleft()
            most = 2
