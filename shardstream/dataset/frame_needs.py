"""When the frames of one dataset are needed: by it its cache decides what may go, and what comes along."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.delivery import Delivery
from shardstream.dataset.interfaces import Part
from shardstream.dataset.worker_epochs import current_worker
from shardstream.order.lanes import Order
from shardstream.order.reuse import lanes_of, last_positions, next_uses
from shardstream.read.dataset_blocks import STREAMS

__all__ = ["FrameNeeds"]

Ints = NDArray[np.int64]
_SHARDS = 4096  # of two epochs, whose frames' last positions are remembered
_LAST_EPOCH = 2**64 - 1


class FrameNeeds:
    """One dataset on its way through its epochs, by itself or as a part of a mixture.

    Args:
        part: The dataset.
        lanes: The number of lanes of its order.
        epoch: The first epoch that is read.
        at: Gives its epoch, and the first position in it that is not delivered.
        until: Gives, for an epoch, the position at which it breaks off.
        once: The stream, if it has room for each frame until that is not needed again.
        scale: Epochs of what is being iterated in one epoch of the dataset.
    """

    def __init__(
        self,
        part: Part,
        lanes: int,
        epoch: int,
        at: Callable[[], tuple[int, int]],
        until: Callable[[int], int],
        once: Delivery | None = None,
        scale: float = 1.0,
    ) -> None:
        # The dataset refers to this object. The cache, which outlives both, refers to neither.
        self._part, self._reader, self._topology = weakref.ref(part), part.reader, part.topology
        self._lanes, self._planned, self._at, self._until = lanes, epoch, at, until
        self._once, self._scale = once, scale
        self._orders: dict[int, Order] = {}
        self._lasts: dict[tuple[int, int], Ints] = {}  # by epoch and shard: `last_positions`

    def begins_epoch(self, epoch: int) -> bool:
        """An epoch is going to be read; whether it is a later one than before."""
        if epoch <= self._planned:
            return False
        self._planned = epoch
        return True

    def _order_of(self, epoch: int) -> Order | None:
        """The order of an epoch, one of its own: orders are not shared between threads."""
        found = self._orders.get(epoch)
        if found is None:
            part = self._part()
            if part is None:
                return None
            if len(self._orders) > 3:
                orders = list(self._orders.items())  # at once: other threads may add to it
                self._orders = {number: order for number, order in orders if number >= epoch - 2}
            found = self._orders[epoch] = part.order(min(epoch, _LAST_EPOCH), self._lanes)
        return found

    def read_in_epoch(self, shard: int) -> NDArray[np.bool_] | None:
        """Which frames of a shard this process will need in this epoch, roughly; None if not known."""
        part, order, ranks = self._part(), self._order_of(self._planned), self._topology
        worker = current_worker()
        if part is None or order is None or (worker is not None and worker.size > 1):
            return None
        frames, share = self._reader.manifest.shards[shard].frames, part.share(shard)
        now, begin = self._at()
        begin = begin if now == self._planned else 0
        until = self._until(self._planned)
        if ranks.dp_size == 1:
            if not begin and until >= order.total:
                found = np.ones(frames, np.bool_)
                if share is not None:
                    found[:] = False
                    found[share.frames] = True
                return found
            mine = np.ones(frames, np.bool_)
        else:
            if order.lanes % ranks.dp_size or (order.shuffle is not None and order.shuffle.scope == "lane"):
                return None
            lane = lanes_of(order, shard, frames, share)
            mine = (lane >= 0) & (lane % ranks.dp_size == ranks.dp_rank)
        last = last_positions(order, shard, frames, share)
        return mine & (last >= begin) & (last < until)

    def next_uses(self, shard: int) -> NDArray[np.float64]:
        """In how many epochs from now each frame of a shard is needed."""
        epoch, position = self._at()
        frames = self._reader.manifest.shards[shard].frames
        last, following = self._last(epoch, shard, frames), self._last(epoch + 1, shard, frames)
        order = self._orders.get(epoch)
        if order is None or last is None or following is None:
            return np.full(frames, np.inf)
        last = np.where(last < self._until(epoch), last, -1)
        over = None
        known = self._once is not None and self._reader.manifest.shards[shard].codec not in STREAMS
        # Other processes may be behind this one.
        if known and self._reader.blocks.tiers.alone:
            assert self._once is not None
            over = self._reader.ahead.fetched(shard, frames) | (last < (self._once.start or 0))
        now = position / max(1, order.total)
        return self._scale * next_uses(last, following, order.total, now, over)

    def _last(self, epoch: int, shard: int, frames: int) -> Ints | None:
        """`last_positions` in an epoch: asked for again whenever a tier makes room."""
        found = self._lasts.get((epoch, shard))
        if found is None:
            order, part = self._order_of(epoch), self._part()
            if order is None or part is None:
                return None
            if len(self._lasts) >= 2 * _SHARDS:
                self._lasts.clear()
            found = self._lasts[epoch, shard] = last_positions(order, shard, frames, part.share(shard))
        return found
