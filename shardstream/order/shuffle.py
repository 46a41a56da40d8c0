"""Seeded permutations of shards, frames and samples, the same on every platform and version.

The random numbers are the raw 64-bit outputs of Philox4x64-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011), keyed by (seed, epoch), with the counter's upper words set to
(item, purpose). A permutation is the stable argsort of such numbers. `numpy.random.Generator` is
not used: its methods may change between numpy versions, the raw output of a bit generator may not.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Philox  # numpy itself would import it when the first batch is planned
from numpy.typing import NDArray

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number

__all__ = ["ShardOrder", "Shuffle", "permutation", "raw"]

Ints = NDArray[np.int64]
_OF_THREAD = threading.local()
_EMPTY = np.zeros(4, np.uint64)  # the buffer of a generator, from which everything was used

# What random numbers are for.
# SHARDS, FRAMES, SAMPLES: the order of shards, of the frames of a shard, and of the samples of a window.
# FIXED: with scope="lane", the order of shards from which lanes are cut.
# PIECES: with scope="lane", the order of pieces within a lane.
# AUGMENT: random changes of samples, such as crops.
# TRANSFORM: the generators of transforms, by the position of the sample in the order.
# ITEM: the generators of transforms, by the number of the sample in the dataset.
SHARDS, FRAMES, SAMPLES, FIXED, PIECES, AUGMENT, TRANSFORM, ITEM = 0, 1, 2, 3, 4, 16, 17, 18


@dataclass(frozen=True)
class Shuffle:
    """How the order is shuffled.

    Args:
        seed: 0 to 2**64 - 1. The same seed gives the same order on every platform and version.
        lanes: The dataset is cut into this many parts, and neighbours in the order come from different parts.
            At least 1. None is the smallest multiple of dp_size that is at least 64; it is set at the first
            start, and then stays.
        window: How many consecutive frames of a lane are mixed with each other, at least 1.
        scope: "epoch" permutes all shards anew in each epoch. "lane" leaves each sample in its lane and
            permutes within lanes, so that a node reads the same shards in every epoch.

    Raises:
        OptionError: A value is out of range.
    """

    seed: int = 0
    lanes: int | None = None
    window: int = 4
    scope: Literal["epoch", "lane"] = "epoch"

    def __post_init__(self) -> None:
        for name in ("seed", "lanes", "window"):
            value = getattr(self, name)
            if name != "lanes" or value is not None:
                object.__setattr__(self, name, whole_number(name, value))
        if not 0 <= self.seed < 2**64:
            raise OptionError(f"seed={self.seed} must be at least 0 and less than 2**64")
        if self.lanes is not None and self.lanes < 1:
            raise OptionError(f"lanes={self.lanes} must be at least 1, or None")
        if self.window < 1:
            raise OptionError(f"window={self.window} must be at least 1")
        if self.scope not in ("epoch", "lane"):
            raise OptionError(f"scope={self.scope!r} must be 'epoch' or 'lane'")

    def lanes_for(self, dp_size: int) -> int:
        """The number of lanes: `lanes`, or the default if `lanes` is None.

        Args:
            dp_size: How many data-parallel ranks there are.

        Returns:
            The number of lanes; by default the smallest multiple of `dp_size` that is at least 64.
        """
        if self.lanes is not None:
            return self.lanes
        return dp_size * -(-64 // dp_size)


def raw(count: int, seed: int, epoch: int, purpose: int, item: int = 0, start: int = 0) -> NDArray[np.uint64]:
    """Random numbers, uint64 [count]: numbers `start` to `start + count - 1` of a sequence.

    Args:
        count: How many numbers.
        seed: Of the shuffle.
        epoch: The number of the epoch.
        purpose: What the numbers are for, such as SHARDS.
        item: Which shard, or piece of a shard. seed, epoch, purpose and item name the sequence.
        start: Where in the sequence to begin.
    """
    block, skip = divmod(start, 4)  # each value of the counter gives four numbers
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([block, 0, item, purpose], np.uint64)
    generator = _generator()
    generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": counter, "key": key},
        "buffer": _EMPTY,
        "buffer_pos": len(_EMPTY),
        "has_uint32": 0,
        "uinteger": 0,
    }
    return np.asarray(generator.random_raw(skip + count), np.uint64)[skip:]


def _generator() -> Philox:
    """The generator of this thread. To set its state is faster than to make one, which draws a seed."""
    found: Philox | None = getattr(_OF_THREAD, "generator", None)
    if found is None:
        found = _OF_THREAD.generator = Philox(key=0)
    return found


def permutation(count: int, seed: int, epoch: int, purpose: int, item: int = 0) -> Ints:
    """A permutation of 0 .. count - 1, int64 [count]; the other arguments as in `raw`."""
    return np.argsort(raw(count, seed, epoch, purpose, item), kind="stable").astype(np.int64)


class ShardOrder:
    """The samples of one shard, or of a piece of a shard, in their shuffled order.

    Frames are permuted. Then samples are permuted within each `window` consecutive frames of this order. Each
    window is computed by itself, so that a seek costs one window and not the shard.

    Args:
        bounds: [F + 1], the first sample of each frame, then the end of the last frame.
        seed: Of the shuffle.
        epoch: The number of the epoch.
        item: The number of the shard or piece.
        window: How many frames are mixed with each other.
    """

    def __init__(self, bounds: NDArray[np.generic], seed: int, epoch: int, item: int, window: int) -> None:
        natural = np.asarray(bounds).astype(np.int64)
        self._seed, self._epoch, self._item, self._window = seed, epoch, item, window
        frames = permutation(len(natural) - 1, seed, epoch, FRAMES, item)
        self._firsts = natural[frames]
        self._ends = np.cumsum(natural[frames + 1] - self._firsts)
        self._window_ends = np.append(self._ends[window - 1 : -1 : window], self._ends[-1:])
        self.nbytes = 4 * natural.nbytes

    def windows(self, offsets: Ints) -> Ints:
        """The number of the window in which each place of the order lies, int64."""
        return np.searchsorted(self._window_ends, offsets, side="right")

    def begin(self, window: int) -> int:
        """The first place of a window."""
        return int(self._window_ends[window - 1]) if window else 0

    def samples(self, window: int) -> Ints:
        """The samples of one window in their shuffled order, int64."""
        frames = slice(window * self._window, (window + 1) * self._window)
        begin, ends = self.begin(window), self._ends[frames]
        starts = np.concatenate(((begin,), ends[:-1]))
        count = int(self._window_ends[window]) - begin
        shift = np.repeat(self._firsts[frames] - starts, ends - starts)
        natural = np.arange(begin, begin + count, dtype=np.int64) + shift
        numbers = raw(count, self._seed, self._epoch, SAMPLES, self._item, begin)
        found: Ints = natural[np.argsort(numbers, kind="stable")]
        return found

    def offset(self, sample: int) -> int:
        """The place of one sample: the inverse of `samples`."""
        sizes = np.diff(self._ends, prepend=0)
        frame = int(np.flatnonzero((self._firsts <= sample) & (sample < self._firsts + sizes))[0])
        window = frame // self._window
        return self.begin(window) + int(np.flatnonzero(self.samples(window) == sample)[0])
