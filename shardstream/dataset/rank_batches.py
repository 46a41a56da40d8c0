"""Which samples make which batch of this rank, and the stream that makes them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.arguments import Last
from shardstream.dataset.batch_maker import Collate, Finish
from shardstream.dataset.collating import Marking
from shardstream.dataset.contents import Contents
from shardstream.dataset.requests import Request, UnitOptions
from shardstream.dataset.streaming import stream
from shardstream.order.topology import batches
from shardstream.read.engine.following import KeptFrames
from shardstream.read.engine.stats import Stats
from shardstream.read.engine.units import Budget
from shardstream.read.handoff.device import pinned

__all__ = ["RankBatches"]


@dataclass(frozen=True)
class RankBatches:
    """The batches of this rank; picklable, for the process that makes them.

    Args:
        contents: The dataset.
        size: Samples of a batch.
        last: See `StreamingLoader`.
        collate: The user's function, or None.
        pin: Whether the threads that make batches pin their memory.
        budget: How much may be ahead.
        kept: The first frames of the next epoch.
    """

    contents: Contents[Any]
    size: int
    last: Last
    collate: Collate | None
    pin: bool
    budget: Budget
    kept: KeptFrames = field(default_factory=KeptFrames, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"contents": self.contents.placed()}

    @property
    def samples(self) -> int:
        """Samples of one batch over all ranks."""
        return self.size * self.contents.topology.dp_size

    def count(self, start: int = 0) -> int:
        """Batches of an epoch from a position on, the same on every rank."""
        return batches(self.contents.total, self.samples, self.last, start)

    def stream(self, epoch: int, position: int, stats: Stats) -> Generator[Any, None, None]:
        """The batches from `position` of `epoch` on."""
        contents, collates = self.contents, self.collate not in (None, list)
        requests = self.requests(position)
        following = self.kept, lambda: self.requests(0), self.count(position)
        options = UnitOptions(direct=not collates and not self.pin, collates=collates)
        if self.collate is None or self.last == "drop":
            finish = self._finish(self.collate)
            return stream(contents, epoch, requests, finish, self.budget, stats, options, following=following)
        # The collate may give something else than a dict, which has no place for "__pad__".
        whole = max(0, contents.total - position) // self.samples
        start = position + whole * self.samples
        fresh = not contents.maker.transforms  # a transform may give a dict that it keeps
        left, padded = contents.total - start, None
        pads = left > 0 and (self.last == "pad" or left < contents.topology.dp_size)
        if left > 0:
            flags: list[bool] = (self.positions(start) >= contents.total).tolist()
            padded = whole, self._finish(Marking(self.collate, flags, pads, self.last, fresh))
        finish = self._finish(Marking(self.collate, None, pads, self.last, fresh))
        return stream(
            contents, epoch, requests, finish, self.budget, stats, options, padded=padded, following=following
        )

    def _finish(self, collate: Collate | None) -> Finish:
        finish = self.contents.maker.collated(collate)
        return (lambda items: pinned(finish(items))) if self.pin else finish

    def requests(self, start: int) -> Iterator[Request]:
        """What this rank needs of each global batch, one batch at first and then more at a time."""
        total, ranks = self.contents.total, self.contents.topology
        count = self.count(start)
        whole = max(0, total - start) // self.samples
        most = max(1, self.contents.planned_at_once // self.size)
        number, some = 0, 1
        while number < whole:
            some = min(some, whole - number)
            # Global batches are multiples of dp_size: a rank's positions go on in even steps.
            first = ranks.first(start) + number * self.samples
            steps = np.arange(some * self.size, dtype=np.int64)
            yield Request(first + steps * ranks.dp_size, [self.size] * some)
            number, some = number + some, min(4 * some, most)
        for number in range(whole, count):
            positions = self.positions(start + number * self.samples)
            yield Request(positions % total, [len(positions)])

    def positions(self, start: int) -> NDArray[np.int64]:
        """This rank's positions in the global batch from `start` on; those >= total are padding."""
        ranks = self.contents.topology
        first = ranks.first(start)
        mine = np.arange(first, first + self.samples, ranks.dp_size, dtype=np.int64)
        if self.last == "short":
            # The first one stays even if it is padding: no rank may go without a batch.
            mine = mine[: max(1, int(np.searchsorted(mine, self.contents.total)))]
        return mine
