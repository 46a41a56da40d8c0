"""What a stream is going to read, told to the cache: indexes one request ahead, and next uses of frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset import workers
from shardstream.order.lanes import Order, distinct
from shardstream.order.topology import Topology
from shardstream.order.uses import lanes_of, last_positions, next_uses
from shardstream.read.kept import STREAMS

if TYPE_CHECKING:
    from shardstream.dataset.base import OrderedDataset

__all__ = ["Coming", "Request", "requests_of"]

Ints = NDArray[np.int64]
_KEPT = 4096  # shards whose frames' last positions are kept
_TOGETHER = 32  # items that are made at a time where single ones are asked for


class Request(NamedTuple):
    """Some consecutive batches: the positions of all of them, int64, and the size of each."""

    positions: NDArray[np.int64]
    sizes: list[int]


def requests_of(ranks: Topology, start: int, total: int, most: int) -> Iterator[Request]:
    """The positions of one rank from `start` on, one at first and then more and more at a time."""
    first, count = ranks.first(start), 1
    while first < total:
        positions = np.arange(first, min(first + count * ranks.dp_size, total), ranks.dp_size, dtype=np.int64)
        whole, rest = divmod(len(positions), _TOGETHER)
        yield Request(positions, [_TOGETHER] * whole + [rest] * bool(rest))
        first, count = first + count * ranks.dp_size, min(4 * count, most)


class Coming:
    """One epoch of a dataset whose bytes are not all on this machine."""

    def __init__(self, ds: OrderedDataset, order: Order, keep: int) -> None:
        """keep: bytes of decompressed frames that may stay in memory until they are read again."""
        self._ds, self._order = ds, order
        self._following: Order | None = None
        # By shard: `last_positions` in this epoch and the next.
        self._lasts: dict[int, tuple[Ints, Ints]] = {}
        self._batches: deque[int] = deque()  # the first position of each that is planned, not delivered
        self._ended = False
        self._start: int | None = None  # the first position of all
        self._exact = self._all_open(keep) and ds.topology.dp_size == 1 and not order.partial
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
            if self._start is None and len(request.positions):
                self._start = int(request.positions[0])
            begin = 0
            for size in request.sizes:
                self._batches.append(int(request.positions[begin]) if size else 0)
                begin += size
            self._ended = False
            yield request

    def delivered(self, built: Generator[Any, None, None]) -> Generator[Any, None, None]:
        """The batches of the requests."""
        try:
            for batch in built:
                self._batches.popleft()
                self._ended = not self._batches
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
        try:
            now = self._batches[0] / max(1, self._ds.total)
        except IndexError:
            now = float(self._ended)
        reader = self._ds.reader
        frames = self._ds.manifest.shards[shard].frames
        last, following = self._last(shard, frames)
        over = None
        # Other processes may be behind this one.
        known = self._exact and self._ds.manifest.shards[shard].codec not in STREAMS
        if known and reader.kept.tiers.alone:
            over = reader.taken(shard) | (last < (self._start or 0))
        return next_uses(last, following, self._order.total, now, over)

    def _last(self, shard: int, frames: int) -> tuple[Ints, Ints]:
        """`last_positions` in this epoch and the next: asked for again whenever a tier makes room."""
        found = self._lasts.get(shard)
        if found is None:
            if self._following is None:
                self._following = self._ds.order(min(self._order.epoch + 1, 2**64 - 1))
            if len(self._lasts) >= _KEPT:
                self._lasts.clear()
            found = self._lasts[shard] = (
                last_positions(self._order, shard, frames), last_positions(self._following, shard, frames)
            )  # fmt: skip
        return found

    def _all_open(self, keep: int) -> bool:
        """Whether `keep` bytes hold the frames that the shuffle has open, so that each is read once."""
        order, shards = self._order, self._ds.manifest.shards
        window = 1 if order.shuffle is None else order.shuffle.window
        # A frame whose samples lie in two windows is open in both.
        count = (window + 1) * -(-order.lanes // self._ds.topology.dp_size)
        return count * max((info.raw_bytes // max(1, info.frames) for info in shards), default=0) <= keep
