"""Seeded permutations of shards, frames and samples, the same on every platform and version.

The random numbers are the raw 64-bit outputs of Philox4x64-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011), keyed by (seed, epoch), with the counter's upper words set to
(item, purpose). A permutation is the stable argsort of such numbers. `numpy.random.Generator` is
not used: its methods may change between numpy versions, the raw output of a bit generator may not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import OptionError

__all__ = ["Shuffle", "permutation", "raw", "shard_order"]

SHARDS, FRAMES, SAMPLES = 0, 1, 2


@dataclass(frozen=True)
class Shuffle:
    """How the order is shuffled.

    lanes: how many places of the dataset each stretch of the order draws from; None means the
        smallest multiple of dp_size that is at least 64, chosen at the first start.
    window: samples are mixed within this many consecutive frames of a lane.
    scope: "epoch" permutes the shards anew in each epoch.
    """

    seed: int = 0
    lanes: int | None = None
    window: int = 4
    scope: str = "epoch"

    def __post_init__(self) -> None:
        for name in ("seed", "lanes", "window"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                if name == "lanes" and value is None:
                    continue
                raise OptionError(f"{name}={value!r} must be an int")
        if not 0 <= self.seed < 2**64:
            raise OptionError(f"seed={self.seed} must be at least 0 and less than 2**64")
        if self.lanes is not None and self.lanes < 1:
            raise OptionError(f"lanes={self.lanes} must be at least 1, or None")
        if self.window < 1:
            raise OptionError(f"window={self.window} must be at least 1")
        if self.scope == "lane":
            raise OptionError("scope='lane' is not supported yet; use scope='epoch'")
        if self.scope != "epoch":
            raise OptionError(f"scope={self.scope!r} must be 'epoch' or 'lane'")

    def lanes_for(self, dp_size: int) -> int:
        """The number of lanes: the one asked for, or the default for `dp_size` ranks."""
        if self.lanes is not None:
            return self.lanes
        return dp_size * -(-64 // dp_size)


def raw(count: int, seed: int, epoch: int, purpose: int, item: int = 0) -> NDArray[np.uint64]:
    """`count` raw 64-bit numbers that depend on the other arguments only."""
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, 0, item, purpose], np.uint64)
    numbers = np.random.Philox(key=key, counter=counter).random_raw(count)
    return np.asarray(numbers, np.uint64)


def permutation(count: int, seed: int, epoch: int, purpose: int, item: int = 0) -> NDArray[np.int64]:
    """A permutation of 0 .. count - 1."""
    return np.argsort(raw(count, seed, epoch, purpose, item), kind="stable").astype(np.int64)


def shard_order(
    frame_first: NDArray[np.generic], seed: int, epoch: int, shard: int, window: int
) -> NDArray[np.int64]:
    """The samples of one shard in their shuffled order.

    `frame_first` [F + 1] holds the first sample of each frame, then the number of samples. Frames
    are permuted, and samples are permuted within `window` consecutive permuted frames.
    """
    bounds = np.asarray(frame_first).astype(np.int64)
    frames = permutation(len(bounds) - 1, seed, epoch, FRAMES, shard)
    sizes = np.diff(bounds)[frames]
    samples = int(bounds[-1])
    ends = np.cumsum(sizes)
    natural = np.arange(samples, dtype=np.int64) + np.repeat(bounds[frames] - (ends - sizes), sizes)
    windows = np.repeat(np.arange(len(frames), dtype=np.int64) // window, sizes)
    # lexsort is a stable mergesort of each key in turn, the last key the most significant.
    inside = np.lexsort((raw(samples, seed, epoch, SAMPLES, shard), windows))
    order: NDArray[np.int64] = natural[inside]
    return order
