"""Neighbours of a frame that are needed in the same epoch, and can be fetched in one range with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from shardstream.format.index import ShardIndex

__all__ = ["RangeExtender"]


class RangeExtender:
    """The frames that are certainly read in this epoch and were not asked for yet; for one thread.

    Args:
        of: From a shard to its frames that are read in this epoch, bool [F]; to None if that is not known.
    """

    def __init__(self, of: Callable[[int], NDArray[np.bool_] | None]) -> None:
        self._of = of
        self._frames: dict[int, NDArray[np.bool_] | None] = {}

    def drop(self, shard: int, frame: int) -> None:
        """Forget a frame, since it is in memory already."""
        unread = self._frames.get(shard)
        if unread is not None:
            unread[frame] = False

    def take(self, shard: int, frame: int, index_of: Callable[[int], ShardIndex], room: int) -> Iterable[int]:
        """A frame that is going to be fetched, together with neighbours that are needed in this epoch.

        Args:
            shard: The number of the shard.
            frame: The frame that is needed now.
            index_of: From a shard to its index.
            room: How many bytes a range may have.

        Returns:
            The numbers of the frames, rising and without a gap.
        """
        if shard not in self._frames:
            self._frames[shard] = self._of(shard)
        unread = self._frames[shard]
        if unread is None:
            return (frame,)
        unread[frame] = False
        index = index_of(shard)
        # Ranges lie on a grid. Otherwise single frames would be left between them. A frame may reach beyond
        # the end of its cell.
        step = room - int(index.frame_size.max())
        if step <= 0:
            return (frame,)
        cell = index.frame_offset // step
        first = last = frame
        while first and unread[first - 1] and cell[first - 1] == cell[frame]:
            first -= 1
        while last + 1 < len(unread) and unread[last + 1] and cell[last + 1] == cell[frame]:
            last += 1
        unread[first : last + 1] = False
        return range(first, last + 1)
