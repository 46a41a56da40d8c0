"""Random numbers of positions: the same for any number of ranks, any batch size and after any restart.

Each position has several numbers, one in each column. The number in a column is a hash of its place in the
table of positions and columns, and of a key that comes from (seed, epoch).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardstream.order.shuffle import AUGMENT, raw

__all__ = ["uniforms"]

_GOLDEN = 0x9E3779B97F4A7C15  # the step of SplitMix64


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    2014): 64 bits in, 64 well mixed bits out.
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def uniforms(positions: NDArray[np.int64], columns: int, seed: int, epoch: int) -> NDArray[np.float32]:
    """Random numbers in [0, 1), float32 [B, columns].

    Args:
        positions: int64 [B]. Row i depends only on positions[i], seed, epoch and columns.
        columns: How many numbers each position has.
        seed: Of the shuffle.
        epoch: The number of the epoch.
    """
    key = raw(1, seed, epoch, AUGMENT)[0]
    places = positions.astype(np.uint64)[:, None] * np.uint64(columns) + np.arange(columns, dtype=np.uint64)
    # 24 bits: as many as a float32 holds, so that no number is rounded up to 1.
    numbers = (_mixed(places * np.uint64(_GOLDEN) + key) >> np.uint64(40)).astype(np.float32)
    return np.asarray(numbers * np.float32(2**-24))
