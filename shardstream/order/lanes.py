"""Position <-> (lane, offset) <-> (shard, sample): the order of an epoch, without state.

S, a sequence of all samples, is cut into C contiguous lanes; lane l holds ceil((N - l) / C) samples.
Position i lies in lane i mod C at offset i div C. S consists of pieces: whole shards in the permuted
order, or with scope="lane" the parts of shards that lanes hold, permuted within their lanes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.errors import OptionError
from shardstream.order.shuffle import FIXED, PIECES, SHARDS, ShardOrder, Shuffle, permutation, raw

__all__ = ["Order", "distinct", "groups", "lane_index", "lane_position", "lane_sizes"]

Ints = NDArray[np.int64]
_NONE = np.empty(0, np.int64)


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


def lane_sizes(total: int, lanes: int) -> Ints:
    """How many samples each lane holds."""
    return (total - 1 - np.arange(lanes, dtype=np.int64)) // lanes + 1


def distinct(values: Ints) -> Ints:
    """Each value once, sorted. Not np.unique: its first call imports numpy.ma, which takes 90 ms."""
    found = np.sort(values)
    new = np.ones(len(found), np.bool_)
    new[1:] = found[1:] != found[:-1]
    return found[new]


def in_order(values: Ints) -> Ints:
    """Each value once, where it comes first."""
    order = np.argsort(values, kind="stable")
    found = values[order]
    new = np.ones(len(found), np.bool_)
    new[1:] = found[1:] != found[:-1]
    return values[np.sort(order[new])]


def groups(values: Ints) -> Iterator[tuple[int, Ints]]:
    """Each distinct value, and where it stands."""
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order])) + 1
    for rows in np.split(order, cuts):
        yield int(values[rows[0]]), rows


class Order:
    """The order of one epoch: a bijection between positions 0 .. N - 1 and (shard, sample).

    sizes: the samples of each shard.  frame_first: shard -> array [F + 1]; only called for shards
    whose samples are asked for.  shuffle: None for the natural order.
    kept: where only some samples of the shards take part, shard -> their numbers, or None for all;
    sizes and frame_first then count those samples alone.  Not shared between threads.
    """

    def __init__(
        self,
        sizes: Sequence[int] | Ints,
        frame_first: Callable[[int], NDArray[np.generic]],
        shuffle: Shuffle | None,
        epoch: int = 0,
        lanes: int = 1,
        kept: Callable[[int], Ints | None] | None = None,
        memory: int = 256 << 20,
    ) -> None:
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < 2**64:
            raise OptionError(f"epoch={epoch!r} must be an int, at least 0")
        if lanes < 1:
            raise OptionError(f"lanes={lanes} must be at least 1")
        natural = np.asarray(sizes, np.int64)
        self.shuffle, self.epoch, self.lanes = shuffle, epoch, lanes
        self.total = int(natural.sum())
        self._sizes, self._frame_first, self._kept = natural, frame_first, kept
        # Of each piece in the order of S: its number, its shard, its first sample in the shard.
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
        self._memory, self._held = memory, 0
        self._recent: OrderedDict[tuple[int, int], ShardOrder | Ints] = OrderedDict()
        # Of each piece the window that was used last: its first offset, and its samples.
        self._current: dict[int, tuple[int, Ints]] = {}

    def _cut_lanes(self, shuffle: Shuffle) -> Ints:
        """Pieces whose lanes do not depend on the epoch; gives the number of samples of each."""
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
        """The shard of each position; asks for no frames, and so for no index."""
        return self._shards[self._find(positions)[0]]

    def locate(self, positions: ArrayLike) -> tuple[Ints, Ints]:
        """The shard and the number within the shard of each position, in O(log shards) each."""
        place, offset = self._find(positions)
        shards = self._shards[place]
        samples = self._begins[place] + offset
        if self.shuffle is not None:
            samples = self._shuffled(place, offset)
        elif self._kept is not None:
            for shard, rows in groups(shards):
                kept = self._kept(shard)
                if kept is not None:
                    samples[rows] = kept[samples[rows]]
        return shards, samples

    def position(self, shard: int, sample: int) -> int:
        """The position of one sample: the inverse of `locate`."""
        self._check(np.asarray(shard), len(self._sizes), "shard")
        kept = None if self._kept is None else self._kept(shard)
        if kept is not None:
            number = int(np.searchsorted(kept, sample))
            if number == len(kept) or kept[number] != sample:
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
        return self._kept is not None

    def span(self, shard: int) -> tuple[int, int]:
        """The part of S, from and to, that holds the samples of a shard; with scope="lane" others, too."""
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
        """The place of the piece and the offset in it of each position."""
        wanted = np.asarray(positions, np.int64)
        self._check(wanted, self.total, "position")
        index = lane_index(wanted, self.total, self.lanes)
        place = np.searchsorted(self._ends, index, side="right")
        return place, index - self._starts[place]

    def _shuffled(self, place: Ints, offset: Ints) -> Ints:
        """The samples at offsets of pieces. Those of a piece mostly lie in the window used last."""
        count = len(place)
        order = np.argsort(place, kind="stable")
        pieces, sought = place[order], offset[order]
        starts = np.flatnonzero(np.diff(pieces, prepend=-1))
        found, samples = np.empty(count, np.int64), np.empty(count, np.int64)
        if count:
            low, high = np.minimum.reduceat(sought, starts), np.maximum.reduceat(sought, starts)
            runs = (pieces[starts], starts, np.append(starts[1:], count), low, high)
            for number, begin, end, least, most in zip(*(run.tolist() for run in runs), strict=True):
                first, inside = self._current.get(number, (0, _NONE))
                if not (first <= least and most < first + len(inside)):
                    found[begin:end] = self._some(number, sought[begin:end])
                else:
                    found[begin:end] = inside[sought[begin:end] - first]
        samples[order] = found
        return samples

    def _some(self, place: int, offsets: Ints) -> Ints:
        """The samples at offsets of one piece, in whatever windows."""
        found = np.empty(len(offsets), np.int64)
        inside = self._inside(place)
        for window, rows in groups(inside.windows(offsets)):
            begin, samples = inside.begin(window), self._window(place, inside, window)
            found[rows] = samples[offsets[rows] - begin]
            self._current[place] = begin, samples
        return found

    def _inside(self, place: int) -> ShardOrder:
        found = self._recall(place, -1)
        if not isinstance(found, ShardOrder):
            assert self.shuffle is not None
            shard, bounds = int(self._shards[place]), self._frame_first(int(self._shards[place]))
            if self._cuts is not None:
                begin = int(self._begins[place])
                end = begin + int(self._ends[place] - self._starts[place])
                bounds = distinct(np.clip(np.asarray(bounds).astype(np.int64), begin, end))
                shard = int(self._pieces[place])
            found = ShardOrder(bounds, self.shuffle.seed, self.epoch, shard, self.shuffle.window)
            self._keep(place, -1, found)
        return found

    def _window(self, place: int, inside: ShardOrder, window: int) -> Ints:
        found = self._recall(place, window)
        if not isinstance(found, np.ndarray):
            found = inside.samples(window)
            kept = None if self._kept is None else self._kept(int(self._shards[place]))
            if kept is not None:
                found = kept[found]
            self._keep(place, window, found)
        return found

    def _recall(self, place: int, window: int) -> ShardOrder | Ints | None:
        found = self._recent.get((place, window))
        if found is not None:
            self._recent.move_to_end((place, window))
        return found

    def _keep(self, place: int, window: int, value: ShardOrder | Ints) -> None:
        self._recent[place, window] = value
        self._held += value.nbytes
        while self._held > self._memory and len(self._recent) > 1:
            (place, _), dropped = self._recent.popitem(last=False)
            self._held -= dropped.nbytes
            self._current.pop(place, None)

    @staticmethod
    def _check(values: NDArray[np.generic], stop: int, name: str) -> None:
        numbers = values.astype(np.int64)
        wrong = numbers[(numbers < 0) | (numbers >= stop)]
        if wrong.size:
            raise IndexError(f"{name} {wrong.flat[0]} is outside 0 .. {stop - 1}")
