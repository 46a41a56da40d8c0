"""Position <-> (lane, offset) <-> (shard, sample): the order of an epoch, without state.

S is a sequence of all N samples. It is cut into C lanes, each a stretch of S. Lane l holds
ceil((N - l) / C) samples. Position i lies in lane i mod C, at offset i div C.

S consists of pieces. With scope="epoch" a piece is a whole shard, and all shards are permuted. With
scope="lane" a piece is the part of a shard that one lane holds, and pieces are permuted within their lane.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.memory import Holder, RecentValues
from shardstream.order.shuffle import FIXED, PIECES, SHARDS, ShardOrder, Shuffle, permutation, raw

__all__ = [
    "Order", "RecentWindows", "by_value", "distinct", "distinct_below", "groups", "lane_index",
    "lane_position", "lane_sizes", "places_below", "recent_windows",
]  # fmt: skip

Ints = NDArray[np.int64]
# By order, piece and window; the window -1 is the order of all windows of a piece.
RecentWindows = RecentValues[tuple[int, int, int], ShardOrder | Ints]
_BYTES = 64 << 20  # of windows, for an order that is given no place for them
_SPARSE = 16  # from so many possible values for each one on, to sort takes less than to mark them
_numbers = itertools.count()


def recent_windows(limit: int, holder: Holder | None = None) -> RecentWindows:
    """A place for windows of orders, those that were used last.

    Args:
        limit: Bytes of all windows.
        holder: Where these bytes count, or None.
    """
    return RecentValues(attrgetter("nbytes"), limit, holder)


def lane_index(positions: Ints, total: int, lanes: int) -> Ints:
    """The index in S of each position, int64 as given; `total` samples in `lanes` lanes."""
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


def lane_sizes(total: int, lanes: int) -> Ints:
    """How many samples each lane holds, int64 [lanes]."""
    return (total - 1 - np.arange(lanes, dtype=np.int64)) // lanes + 1


def distinct(values: Ints) -> Ints:
    """Each value once, sorted. Not np.unique: its first call imports numpy.ma, which takes 90 ms."""
    found = np.sort(values)
    new = np.ones(len(found), np.bool_)
    new[1:] = found[1:] != found[:-1]
    return found[new]


def distinct_below(values: Ints, most: int) -> Ints:
    """As `distinct`, of values that are at least 0 and less than `most`: without sorting if they are many."""
    if most > _SPARSE * len(values):
        return distinct(values)
    seen = np.zeros(most, np.bool_)
    seen[values] = True
    return np.flatnonzero(seen)


def places_below(values: Ints, most: int) -> tuple[Ints, Ints]:
    """What `distinct_below` finds, and the place of each value among it."""
    found = distinct_below(values, most)
    if most > _SPARSE * len(values):
        return found, np.searchsorted(found, values)
    place = np.empty(most, np.int64)
    place[found] = np.arange(len(found), dtype=np.int64)
    return found, place[values]


def by_value(values: Ints) -> Ints:
    """The stable order that sorts values, which are at least 0.

    Numpy sorts numbers of 16 bits in one pass over them, 64-bit numbers by comparing.
    """
    small = len(values) and int(values.max()) < 1 << 16
    return np.argsort(values.astype(np.uint16) if small else values, kind="stable")


def in_order(values: Ints) -> Ints:
    """Each value once, in the order in which the values first appear."""
    order = np.argsort(values, kind="stable")
    found = values[order]
    new = np.ones(len(found), np.bool_)
    new[1:] = found[1:] != found[:-1]
    return values[np.sort(order[new])]


def groups(values: Ints) -> Iterator[tuple[int, Ints]]:
    """Each distinct value, and the indices at which it stands."""
    if not len(values):
        return
    order = by_value(values)
    cuts = np.flatnonzero(np.diff(values[order])) + 1
    for rows in np.split(order, cuts):
        yield int(values[rows[0]]), rows


class Order:
    """The order of one epoch: a bijection between positions 0 .. N - 1 and (shard, sample).

    An order is for one thread at a time.

    Args:
        sizes: How many samples of each shard take part, [shards].
        frame_first: From a shard to the first sample of each frame, then the end, [F + 1]. It is only called
            for shards whose samples are asked for.
        shuffle: How to shuffle. None is the natural order.
        epoch: The number of the epoch, 0 to 2**64 - 1.
        lanes: How many lanes there are, at least 1.
        chosen: From a shard to the numbers of the samples that take part, rising; or to None if all do. Then
            `sizes` and `frame_first` count only these samples. None: all samples of all shards take part.
        recent: Where windows that were computed stay for a while. Several orders may share it. By default
            each order has one of its own.

    Attributes:
        total: N, how many samples take part.

    Raises:
        OptionError: `epoch` or `lanes` is out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int] | Ints,
        frame_first: Callable[[int], NDArray[np.generic]],
        shuffle: Shuffle | None,
        epoch: int = 0,
        lanes: int = 1,
        chosen: Callable[[int], Ints | None] | None = None,
        recent: RecentWindows | None = None,
    ) -> None:
        epoch = whole_number("epoch", epoch, 0)
        if epoch >= 2**64:
            raise OptionError(f"epoch={epoch} must be less than 2**64")
        if lanes < 1:
            raise OptionError(f"lanes={lanes} must be at least 1")
        natural = np.asarray(sizes, np.int64)
        self.shuffle, self.epoch, self.lanes = shuffle, epoch, lanes
        self.total = int(natural.sum())
        self._sizes, self._frame_first, self._chosen = natural, frame_first, chosen
        # Of each piece, in the order of S: its number (_pieces), its shard, its first sample in the shard.
        if shuffle is not None and shuffle.scope == "lane":
            counts = self._cut_lanes(shuffle)
        else:
            count = len(natural)
            order = np.arange(count, dtype=np.int64)
            if shuffle is not None:
                order = permutation(count, shuffle.seed, epoch, SHARDS)
            self._pieces = self._shards = order
            self._begins = np.zeros(count, np.int64)
            self._cuts: Ints | None = None
            counts = natural[order]
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._places = np.empty_like(self._pieces)
        self._places[self._pieces] = np.arange(len(self._pieces), dtype=np.int64)
        self._recent = recent_windows(_BYTES) if recent is None else recent
        self._number = next(_numbers)
        # From a piece to the window that was used last: its first offset, its end, and its number.
        self._current: dict[int, tuple[int, int, int]] = {}

    def _cut_lanes(self, shuffle: Shuffle) -> Ints:
        """Make pieces whose lanes do not depend on the epoch; returns how many samples each piece has."""
        fixed = permutation(len(self._sizes), shuffle.seed, 0, FIXED)
        ends = np.cumsum(self._sizes[fixed])
        starts = ends - self._sizes[fixed]
        lanes = lane_sizes(self.total, self.lanes)
        firsts = np.cumsum(lanes) - lanes
        cuts = distinct(np.concatenate((starts, firsts)))
        cuts = cuts[cuts < self.total]
        lane = np.searchsorted(firsts, cuts, side="right") - 1
        place = np.searchsorted(ends, cuts, side="right")
        order = np.lexsort((raw(len(cuts), shuffle.seed, self.epoch, PIECES), lane))
        self._pieces = order.astype(np.int64)
        self._shards = fixed[place][order]
        self._begins = (cuts - starts[place])[order]
        self._cuts, self._fixed_starts = cuts, np.empty_like(starts)
        self._fixed_starts[fixed] = starts
        return np.diff(cuts, append=self.total)[order]

    def shards(self, positions: ArrayLike) -> Ints:
        """The shard of each position, int64. `frame_first` is not called, so that no index is read."""
        return self._shards[self._find(positions)[0]]

    def locate(self, positions: ArrayLike) -> tuple[Ints, Ints]:
        """The shard of each position, and the number of the sample within this shard, both int64.

        Args:
            positions: Numbers from 0 to N - 1. Each takes O(log shards).

        Raises:
            IndexError: A position is out of range.
        """
        place, offset = self._find(positions)
        shards = self._shards[place]
        samples = self._begins[place] + offset
        if self.shuffle is not None:
            samples = self._shuffled(place, offset)
        elif self._chosen is not None:
            for shard, rows in groups(shards):
                chosen = self._chosen(shard)
                if chosen is not None:
                    samples[rows] = chosen[samples[rows]]
        return shards, samples

    def position(self, shard: int, sample: int) -> int:
        """The position of one sample: the inverse of `locate`.

        Raises:
            IndexError: There is no such shard or sample, or the sample does not take part.
        """
        self._check(np.asarray(shard), len(self._sizes), "shard")
        chosen = None if self._chosen is None else self._chosen(shard)
        if chosen is not None:
            number = int(np.searchsorted(chosen, sample))
            if number == len(chosen) or chosen[number] != sample:
                raise IndexError(f"sample {sample} of shard {shard} is not in the subset")
            sample = number
        self._check(np.asarray(sample), int(self._sizes[shard]), "sample")
        piece = shard
        if self._cuts is not None:
            at = self._fixed_starts[shard] + sample
            piece = int(np.searchsorted(self._cuts, at, side="right")) - 1
        place = int(self._places[piece])
        offset = sample - int(self._begins[place])
        if self.shuffle is not None:
            offset = self._inside(place).offset(sample)
        index = np.array([self._starts[place] + offset], np.int64)
        return int(lane_position(index, self.total, self.lanes)[0])

    @property
    def partial(self) -> bool:
        """Whether only some samples of the shards take part."""
        return self._chosen is not None

    def span(self, shard: int) -> tuple[int, int]:
        """(begin, end) of the part of S that holds the samples of a shard.

        With scope="lane" this part holds samples of other shards, too. The part is empty if no sample of the
        shard takes part.
        """
        if not self._sizes[shard]:
            return 0, 0
        pieces = slice(shard, shard + 1)
        if self._cuts is not None:
            begin = int(self._fixed_starts[shard])
            first, last = np.searchsorted(
                self._cuts, (begin, begin + int(self._sizes[shard]) - 1), side="right"
            )
            pieces = slice(int(first) - 1, int(last))
        places = self._places[pieces]
        return int(self._starts[places].min()), int(self._ends[places].max())

    def _find(self, positions: ArrayLike) -> tuple[Ints, Ints]:
        """Of each position the place of its piece in S, and the offset within the piece."""
        wanted = np.asarray(positions, np.int64)
        self._check(wanted, self.total, "position")
        index = lane_index(wanted, self.total, self.lanes)
        place = np.searchsorted(self._ends, index, side="right")
        return place, index - self._starts[place]

    def _shuffled(self, place: Ints, offset: Ints) -> Ints:
        """The samples at offsets of pieces. Most lie in the window of the piece that was used last."""
        count = len(place)
        order = by_value(place)
        pieces, sought = place[order], offset[order]
        starts = np.flatnonzero(np.diff(pieces, prepend=-1))
        found, samples = np.empty(count, np.int64), np.empty(count, np.int64)
        if count:
            low, high = np.minimum.reduceat(sought, starts), np.maximum.reduceat(sought, starts)
            runs = (pieces[starts], starts, np.append(starts[1:], count), low, high)
            for number, begin, end, least, most in zip(*(run.tolist() for run in runs), strict=True):
                first, last, window = self._current.get(number, (0, 0, 0))
                inside = None
                if first <= least and most < last:
                    inside = self._recent.get((self._number, number, window))
                if isinstance(inside, np.ndarray):
                    found[begin:end] = inside[sought[begin:end] - first]
                else:
                    found[begin:end] = self._some(number, sought[begin:end])
        samples[order] = found
        return samples

    def _some(self, place: int, offsets: Ints) -> Ints:
        """The samples at offsets of one piece, which may lie in any of its windows."""
        found = np.empty(len(offsets), np.int64)
        inside = self._inside(place)
        for window, rows in groups(inside.windows(offsets)):
            begin, samples = inside.begin(window), self._window(place, inside, window)
            found[rows] = samples[offsets[rows] - begin]
            self._current[place] = begin, begin + len(samples), window
        return found

    def _inside(self, place: int) -> ShardOrder:
        """The order of the samples of a piece."""
        key = self._number, place, -1
        found = self._recent.get(key)
        if isinstance(found, ShardOrder):
            return found
        assert self.shuffle is not None
        shard, bounds = int(self._shards[place]), self._frame_first(int(self._shards[place]))
        if self._cuts is not None:
            begin = int(self._begins[place])
            end = begin + int(self._ends[place] - self._starts[place])
            bounds = distinct(np.clip(np.asarray(bounds).astype(np.int64), begin, end))
            shard = int(self._pieces[place])
        made = ShardOrder(bounds, self.shuffle.seed, self.epoch, shard, self.shuffle.window)
        self._recent.put(key, made)
        return made

    def _window(self, place: int, inside: ShardOrder, window: int) -> Ints:
        """The samples of a window of a piece."""
        key = self._number, place, window
        found = self._recent.get(key)
        if isinstance(found, np.ndarray):
            return found
        samples = inside.samples(window)
        chosen = None if self._chosen is None else self._chosen(int(self._shards[place]))
        if chosen is not None:
            samples = chosen[samples]
        self._recent.put(key, samples)
        return samples

    @staticmethod
    def _check(values: NDArray[np.generic], stop: int, name: str) -> None:
        numbers = values.astype(np.int64)
        wrong = numbers[(numbers < 0) | (numbers >= stop)]
        if wrong.size:
            raise IndexError(f"{name} {wrong.flat[0]} is outside 0 .. {stop - 1}")
