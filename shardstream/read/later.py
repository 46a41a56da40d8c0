"""Frames that are needed later in an epoch, and may come in the range of one that is needed now."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from shardstream.format.index import ShardIndex

__all__ = ["Later"]


class Later:
    """What is certainly read in this epoch and not sent for yet; for one thread.

    of: which frames of a shard are read in this epoch, bool [F]; None where that is not known.
    """

    def __init__(self, of: Callable[[int], NDArray[np.bool_] | None]) -> None:
        self._of = of
        self._frames: dict[int, NDArray[np.bool_] | None] = {}

    def take(self, shard: int, frame: int, index_of: Callable[[int], ShardIndex], room: int) -> Iterable[int]:
        """A frame that is to be fetched, and those beside it that will be needed and fit in `room` bytes."""
        if shard not in self._frames:
            self._frames[shard] = self._of(shard)
        later = self._frames[shard]
        if later is None:
            return (frame,)
        later[frame] = False
        index = index_of(shard)
        # Ranges on a grid: otherwise single frames would be left over between them. A frame may stick out.
        step = room - int(index.frame_size.max())
        if step <= 0:
            return (frame,)
        cell = index.frame_offset // step
        first = last = frame
        while first and later[first - 1] and cell[first - 1] == cell[frame]:
            first -= 1
        while last + 1 < len(later) and later[last + 1] and cell[last + 1] == cell[frame]:
            last += 1
        later[first : last + 1] = False
        return range(first, last + 1)
