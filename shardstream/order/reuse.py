"""When each frame of a shard is read, roughly: what a cache needs to know about the order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.order.lanes import Order, lane_position
from shardstream.order.shuffle import FRAMES, permutation

__all__ = ["Share", "lanes_of", "last_positions", "next_uses"]

Ints = NDArray[np.int64]


class Share(NamedTuple):
    """The K frames of a shard that hold samples which take part, if not all samples do.

    Attributes:
        frames: int64 [K], the numbers of the frames, rising.
        first: int64 [K + 1]. Entry k says how many samples that take part lie before frame k. The last entry
            says how many there are in all.
    """

    frames: Ints
    first: Ints


def last_positions(order: Order, shard: int, frames: int, share: Share | None = None) -> Ints:
    """The last position that reads each frame of a shard, int64 [frames]; -1 if no position does.

    The positions are estimates: a frame is read at the latest when its window is over.

    Args:
        order: Of the epoch.
        shard: The number of the shard.
        frames: How many frames the shard has.
        share: The frames that take part, if not all samples do. Without it all frames are assumed to hold the
            same number of samples, so that no index is needed.
    """
    begin, end = order.span(shard)
    found = np.full(frames, -1, np.int64)
    if not frames or begin == end:
        return found
    if share is not None:
        _, ends = _bounds(order, shard, share)
        last = begin + np.minimum(ends, end - begin) - 1
        found[share.frames] = lane_position(last, order.total, order.lanes)
        return found
    place = np.arange(frames, dtype=np.int64)
    if order.shuffle is not None:
        place = _places(order, shard, frames)
        # The samples of a frame are spread over the window that the frame is in.
        window = order.shuffle.window
        place = np.minimum((place // window + 1) * window, frames) - 1
    last = begin + np.maximum((place + 1) * (end - begin) // frames - 1, 0)
    return lane_position(last, order.total, order.lanes)


def lanes_of(order: Order, shard: int, frames: int, share: Share | None = None) -> Ints:
    """The lane that reads all samples of each frame of a shard, int64 [frames]; -1 if there may be several.

    Args:
        order: Of the epoch.
        shard: The number of the shard.
        frames: How many frames the shard has.
        share: The frames that take part, if not all samples do. Without it a window is assumed to begin and
            to end at most one frame away from where it would if all frames held the same number of samples.
    """
    begin, end = order.span(shard)
    found = np.full(frames, -1, np.int64)
    if not frames or begin == end:
        return found
    if share is not None:
        bounds, which = _bounds(order, shard, share), share.frames
        low, high = begin + bounds[0], begin + np.minimum(bounds[1], end - begin) - 1
    else:
        which = place = np.arange(frames, dtype=np.int64)
        window = 1
        if order.shuffle is not None:
            window, place = order.shuffle.window, _places(order, shard, frames)
        first = np.maximum(place // window * window - 1, 0)
        last = np.minimum((place // window + 1) * window + 1, frames)
        low = begin + first * (end - begin) // frames
        high = begin + np.maximum(last * (end - begin) // frames, 1) - 1
    lanes = [lane_position(bound, order.total, order.lanes) % order.lanes for bound in (low, high)]
    found[which] = np.where(lanes[0] == lanes[1], lanes[0], -1)
    return found


def _places(order: Order, shard: int, frames: int) -> Ints:
    """The place of each frame in the shuffled order of a shard's frames."""
    assert order.shuffle is not None
    place = np.empty(frames, np.int64)
    permuted = permutation(frames, order.shuffle.seed, order.epoch, FRAMES, shard)
    place[permuted] = np.arange(frames, dtype=np.int64)
    return place


def _bounds(order: Order, shard: int, share: Share) -> tuple[Ints, Ints]:
    """(begin, end) of the window of each frame, [K] each: the samples of a frame lie somewhere in it."""
    count, counts = len(share.frames), np.diff(share.first)
    if order.shuffle is None:
        return share.first[:-1], share.first[1:]
    place, window = _places(order, shard, count), order.shuffle.window
    sorted_counts = np.empty(count, np.int64)
    sorted_counts[place] = counts
    ends = np.concatenate(([0], np.cumsum(sorted_counts)))
    return ends[place // window * window], ends[np.minimum((place // window + 1) * window, count)]


def next_uses(
    last: Ints, following: Ints, total: int, now: float, over: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """In how many epochs each frame of a shard is needed next, float64 [F].

    Args:
        last: `last_positions` in this epoch, int64 [F].
        following: `last_positions` in the next epoch, int64 [F]. If neither epoch reads a frame, the frame is
            never needed, and its value is infinite.
        total: How many positions an epoch has.
        now: Which part of this epoch is over, 0 to 1.
        over: Which frames are not needed again in this epoch, bool [F]. None if that is not known exactly.
    """
    ahead = (last + 1) / max(1, total) - now
    in_next = 1 - now + (following + 1) / max(1, total)
    found: NDArray[np.float64] = np.where(ahead < 0 if over is None else over, in_next, np.maximum(ahead, 0))
    found[(last < 0) & (following < 0)] = np.inf
    return found
