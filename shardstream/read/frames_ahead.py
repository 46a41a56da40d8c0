"""Fetches frames before they are asked for, by what is known of the epochs that are read."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardstream.format.index import ShardIndex
from shardstream.read.dataset_blocks import DatasetBlocks, FrameUses
from shardstream.read.local_frames import LocalFrames
from shardstream.read.range_extender import RangeExtender
from shardstream.storage.fetch.in_flight import BlockRequest

__all__ = ["EpochNeeds", "FramesAhead"]


class EpochNeeds(FrameUses, Protocol):
    """What is known of the epochs that are being read."""

    def read_in_epoch(self, shard: int) -> NDArray[np.bool_] | None:
        """Which frames of a shard are certainly read in this epoch, bool [F]; None if this is not known."""


class FramesAhead:
    """Fetches the frames of a dataset before they are asked for.

    Args:
        blocks: The blocks of the dataset.
        local: The shards that are read from mapped files. Their frames are not fetched.
        index: From a shard to its index.
    """

    def __init__(self, blocks: DatasetBlocks, local: LocalFrames, index: Callable[[int], ShardIndex]) -> None:
        self._blocks, self._local, self._index = blocks, local, index
        self._extender = RangeExtender(lambda shard: None)

    def fetch(self, frames: Sequence[tuple[int, int]]) -> None:
        """Begin to fetch frames that will be asked for in this order. Returns at once, and raises nothing.

        Args:
            frames: (shard, number of the frame) of each.
        """
        if frames:
            self._blocks.fetcher.ahead(self._requests(frames))

    def _requests(self, frames: Sequence[tuple[int, int]]) -> Iterator[BlockRequest]:
        blocks = self._blocks
        for shard, frame in frames:
            if self._local.mapped(shard) is not None:
                continue
            index = self._index(shard)
            request = blocks.frame(shard, frame, index)
            if blocks.fetcher.has(request.block):
                # A neighbour comes along with the request of another frame. It is never the reason for one.
                self._extender.drop(shard, frame)
                yield request
                continue
            for number in self._extender.take(shard, frame, self._index, blocks.fetcher.room):
                yield request if number == frame else blocks.frame(shard, number, index, soon=False)

    def begin_epoch(self, needs: EpochNeeds) -> None:
        """Say that an epoch begins.

        Args:
            needs: What is known of the epoch. The reference is weak: it counts while somebody else refers to
                it.
        """
        self._blocks.set_next_uses(needs)
        self.continue_with(needs)
        self._blocks.fetcher.restart(self._blocks.bytes)

    def continue_with(self, needs: EpochNeeds) -> None:
        """Say that the next epoch follows without a break; `needs` as in `begin_epoch`."""
        read_in_epoch = weakref.WeakMethod(needs.read_in_epoch)

        def known(shard: int) -> NDArray[np.bool_] | None:
            found = read_in_epoch()
            return None if found is None else found(shard)

        self._extender = RangeExtender(known)

    def fetched(self, shard: int, frames: int) -> NDArray[np.bool_]:
        """Which frames of a shard were read since `begin_epoch`, or are in memory to be read, bool [F]."""
        found = np.zeros(frames, np.bool_)
        found[self._blocks.fetcher.taken(self._blocks.group(shard))] = True
        return found
