"""What a stream is going to read, told to the cache: indexes one request ahead, and next uses of frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset import workers
from shardstream.order.lanes import Order, distinct
from shardstream.order.uses import lanes_of, last_positions, next_uses

if TYPE_CHECKING:
    from shardstream.dataset.base import OrderedDataset

__all__ = ["Coming", "Request"]


class Request(NamedTuple):
    """Some consecutive batches: the positions of all of them, int64, and the size of each."""

    positions: NDArray[np.int64]
    sizes: list[int]


class Coming:
    """One epoch of a dataset whose bytes are not all on this machine."""

    def __init__(self, ds: OrderedDataset, order: Order) -> None:
        self._ds, self._order = ds, order
        self._following: Order | None = None
        self._batches: deque[int] = deque()  # the first position of each that is planned, not delivered
        ds.reader.plan(self._uses, self._all_later)

    def requests(self, requests: Iterable[Request]) -> Iterator[Request]:
        """The requests; the indexes of each and of the one after it are on their way."""
        waiting = iter(requests)
        held: deque[Request] = deque()
        while True:
            while len(held) < 2 and (request := next(waiting, None)) is not None:
                held.append(request)
                shards = distinct(self._order.shards(request.positions))
                self._ds.reader.expect_indexes(shards.tolist())
            if not held:
                return
            request = held.popleft()
            begin = 0
            for size in request.sizes:
                self._batches.append(int(request.positions[begin]) if size else 0)
                begin += size
            yield request

    def delivered(self, built: Generator[Any, None, None]) -> Generator[Any, None, None]:
        """The batches of the requests."""
        try:
            for batch in built:
                self._batches.popleft()
                yield batch
        finally:
            built.close()

    def _all_later(self, shard: int) -> NDArray[np.bool_] | None:
        """Which frames of a shard this process will need in this epoch, roughly; None if not known."""
        order, ranks = self._order, self._ds.topology
        worker = workers.current()
        if order.partial or (worker is not None and worker.size > 1):
            return None
        frames, begin = self._ds.manifest.shards[shard].frames, next(iter(tuple(self._batches)), 0)
        if ranks.dp_size == 1 and not begin:
            return np.ones(frames, np.bool_)
        if order.lanes % ranks.dp_size or (order.shuffle is not None and order.shuffle.scope == "lane"):
            return None
        lane = lanes_of(order, shard, frames)
        found: NDArray[np.bool_] = (lane >= 0) & (lane % ranks.dp_size == ranks.dp_rank)
        return found & (last_positions(order, shard, frames) >= begin)

    def _uses(self, shard: int) -> NDArray[np.float64]:
        """In how many epochs from now each frame of a shard is needed."""
        if self._following is None:
            self._following = self._ds.order(min(self._order.epoch + 1, 2**64 - 1))
        try:
            now = self._batches[0] / max(1, self._ds.total)
        except IndexError:  # nothing planned, or all delivered
            now = 0.0
        frames = self._ds.manifest.shards[shard].frames
        return next_uses(self._order, self._following, shard, frames, now)
