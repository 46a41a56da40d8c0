"""Position <-> (lane, offset) <-> (shard, sample): the order of an epoch, without state.

S, the concatenation of the shards in their permuted order, is cut into C contiguous lanes; lane l
holds ceil((N - l) / C) samples. Position i lies in lane i mod C at offset i div C.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.errors import OptionError
from shardstream.order.shuffle import SHARDS, Shuffle, permutation, shard_order

__all__ = ["Order", "lane_index", "lane_position"]

Ints = NDArray[np.int64]


def lane_index(positions: Ints, total: int, lanes: int) -> Ints:
    """The index in S of each position."""
    lane, offset = positions % lanes, positions // lanes
    return lane * (total // lanes) + np.minimum(lane, total % lanes) + offset


def lane_position(indices: Ints, total: int, lanes: int) -> Ints:
    """The position of each index in S: the inverse of `lane_index`."""
    size, longer = divmod(total, lanes)
    # The first `longer` lanes hold size + 1 samples each, the others size.
    border = longer * (size + 1)
    early = indices < border
    safe = max(size, 1)
    lane = np.where(early, indices // (size + 1), longer + (indices - border) // safe)
    offset = np.where(early, indices % (size + 1), (indices - border) % safe)
    return offset * lanes + lane


class Order:
    """The order of one epoch: a bijection between positions 0 .. N - 1 and (shard, sample).

    sizes: the samples of each shard.  frame_first: shard -> array [F + 1]; only called for shards
    whose samples are asked for.  shuffle: None for the natural order.  Not shared between threads.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        frame_first: Callable[[int], NDArray[np.generic]],
        shuffle: Shuffle | None,
        epoch: int = 0,
        lanes: int = 1,
        memory: int = 256 << 20,
    ) -> None:
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < 2**64:
            raise OptionError(f"epoch={epoch!r} must be an int, at least 0")
        if lanes < 1:
            raise OptionError(f"lanes={lanes} must be at least 1")
        natural = np.asarray(sizes, np.int64)
        self.shuffle, self.epoch, self.lanes = shuffle, epoch, lanes
        self._frame_first = frame_first
        if shuffle is None:
            self._shards = np.arange(len(natural), dtype=np.int64)
        else:
            self._shards = permutation(len(natural), shuffle.seed, epoch, SHARDS)
        self._ends = np.cumsum(natural[self._shards])
        self._starts = self._ends - natural[self._shards]
        self._place = np.empty_like(self._shards)
        self._place[self._shards] = np.arange(len(natural), dtype=np.int64)
        self.total = int(self._ends[-1]) if len(natural) else 0
        self._memory, self._held = memory, 0
        self._inside: OrderedDict[int, Ints] = OrderedDict()

    def locate(self, positions: ArrayLike) -> tuple[Ints, Ints]:
        """The shard and the number within the shard of each position, in O(log shards) each."""
        wanted = np.asarray(positions, np.int64)
        self._check(wanted, self.total, "position")
        index = lane_index(wanted, self.total, self.lanes)
        place = np.searchsorted(self._ends, index, side="right")
        shards = self._shards[place]
        samples = index - self._starts[place]
        if self.shuffle is not None:
            for shard in np.unique(shards).tolist():
                mine = shards == shard
                samples[mine] = self._permuted(shard)[samples[mine]]
        return shards, samples

    def position(self, shard: int, sample: int) -> int:
        """The position of one sample: the inverse of `locate`."""
        self._check(np.asarray(shard), len(self._shards), "shard")
        place = int(self._place[shard])
        self._check(np.asarray(sample), int(self._ends[place] - self._starts[place]), "sample")
        if self.shuffle is not None:
            sample = int(np.flatnonzero(self._permuted(shard) == sample)[0])
        index = np.array([self._starts[place] + sample], np.int64)
        return int(lane_position(index, self.total, self.lanes)[0])

    def span(self, shard: int) -> tuple[int, int]:
        """The part of S, from and to, that the samples of a shard are."""
        place = int(self._place[shard])
        return int(self._starts[place]), int(self._ends[place])

    def _permuted(self, shard: int) -> Ints:
        assert self.shuffle is not None
        found = self._inside.get(shard)
        if found is None:
            first = self._frame_first(shard)
            found = shard_order(first, self.shuffle.seed, self.epoch, shard, self.shuffle.window)
            self._inside[shard] = found
            self._held += found.nbytes
            while self._held > self._memory and len(self._inside) > 1:
                self._held -= self._inside.popitem(last=False)[1].nbytes
        else:
            self._inside.move_to_end(shard)
        return found

    @staticmethod
    def _check(values: NDArray[np.generic], stop: int, name: str) -> None:
        numbers = values.astype(np.int64)
        wrong = numbers[(numbers < 0) | (numbers >= stop)]
        if wrong.size:
            raise IndexError(f"{name} {wrong.flat[0]} is outside 0 .. {stop - 1}")
