"""When each frame of a shard is used, roughly: what a cache needs to know about the order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardstream.order.lanes import Order, lane_position
from shardstream.order.shuffle import FRAMES, permutation

__all__ = ["lanes_of", "last_positions", "next_uses"]


def last_positions(order: Order, shard: int, frames: int) -> NDArray[np.int64]:
    """The position that reads each frame of a shard last, [frames]; -1 where none does.

    It takes all frames of a shard to hold equally many samples, so that no index is needed.
    """
    begin, end = order.span(shard)
    if not frames or begin == end:
        return np.full(frames, -1, np.int64)
    place = np.arange(frames, dtype=np.int64)
    if order.shuffle is not None:
        permuted = permutation(frames, order.shuffle.seed, order.epoch, FRAMES, shard)
        place = np.empty(frames, np.int64)
        place[permuted] = np.arange(frames, dtype=np.int64)
        # Samples of a frame are spread over its window.
        window = order.shuffle.window
        place = np.minimum((place // window + 1) * window, frames) - 1
    last = begin + np.maximum((place + 1) * (end - begin) // frames - 1, 0)
    return lane_position(last, order.total, order.lanes)


def lanes_of(order: Order, shard: int, frames: int) -> NDArray[np.int64]:
    """The lane that reads all samples of each frame of a shard, [frames]; -1 where there may be several.

    It takes the frames of a shard to differ in samples by less than what fills one of them.
    """
    begin, end = order.span(shard)
    if not frames or begin == end:
        return np.full(frames, -1, np.int64)
    place, window = np.arange(frames, dtype=np.int64), 1
    if order.shuffle is not None:
        window = order.shuffle.window
        place = np.argsort(permutation(frames, order.shuffle.seed, order.epoch, FRAMES, shard))
    first = np.maximum(place // window * window - 1, 0)
    last = np.minimum((place // window + 1) * window + 1, frames)
    low = begin + first * (end - begin) // frames
    high = begin + np.maximum(last * (end - begin) // frames, 1) - 1
    lanes = [lane_position(bound, order.total, order.lanes) % order.lanes for bound in (low, high)]
    return np.where(lanes[0] == lanes[1], lanes[0], -1)


def next_uses(
    last: NDArray[np.int64],
    following: NDArray[np.int64],
    total: int,
    now: float,
    over: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """In how many epochs each frame of a shard is needed, where the part `now` of this epoch is over.

    last, following: `last_positions` in this epoch and in the one after it, of `total` positions each.
    over: the frames that are not needed again in this epoch, where that is known exactly.
    """
    ahead = (last + 1) / max(1, total) - now
    later = 1 - now + (following + 1) / max(1, total)
    return np.where(ahead < 0 if over is None else over, later, np.maximum(ahead, 0))
