"""Several datasets in fixed proportions: which dataset each position draws from, and which sample.

A sequence of datasets, with period D, is computed once. Draw n of lane l is of the dataset at place n + l of
this sequence. So the positions of one round through the lanes draw a stretch of the sequence.

The draws of a dataset of N items are counted in the order of the mixture. Draw m belongs to epoch m div N of
the dataset.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, lcm
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.errors import OptionError
from shardstream.memory import RecentValues
from shardstream.order.lanes import groups, lane_sizes

__all__ = ["ENDLESS", "Draws", "MixtureOrder", "Schedule", "shares"]

Ints = NDArray[np.int64]

ENDLESS = 1 << 62
PERIOD = 1 << 16  # the longest period: weights that need a longer one are rounded to multiples of 1 / PERIOD
_TURNS = 256  # how many epochs of datasets stay in memory, each with its boundaries


def shares(weights: Sequence[float | int | Fraction]) -> list[int]:
    """Whole numbers in the proportions of the weights, each at least 1.

    The proportions are exact if they need a sum of at most PERIOD. Otherwise the numbers are the nearest ones
    whose sum is PERIOD.

    Args:
        weights: Numbers above 0. A float counts as the decimal number that it is printed as.

    Raises:
        OptionError: A weight is no number above 0, or there are more than PERIOD weights.
    """
    exact = []
    for weight in weights:
        try:
            # A bool or a text is no weight, although Fraction takes both.
            value = Fraction(-1) if isinstance(weight, (bool, str)) else Fraction(str(weight))
        except (ValueError, TypeError):
            value = Fraction(-1)
        if value <= 0:
            raise OptionError(f"weight {weight!r} must be a number above 0")
        exact.append(value)
    whole = sum(exact)
    parts = [value / whole for value in exact]
    period = lcm(*(part.denominator for part in parts))
    if period <= PERIOD:
        return [int(part * period) for part in parts]
    if len(parts) > PERIOD:
        raise OptionError(f"{len(parts)} datasets are more than a mixture can hold, {PERIOD}")
    found = [max(1, int(part * PERIOD)) for part in parts]
    while sum(found) != PERIOD:
        step = 1 if sum(found) < PERIOD else -1
        # Change the number that is farthest from its exact share, in the direction that is needed.
        gaps = [(step * (part * PERIOD - n), -i) for i, (part, n) in enumerate(zip(parts, found, strict=True))
                if n + step > 0]  # fmt: skip
        found[-max(gaps)[1]] += step
    return found


class Schedule:
    """An endless sequence of datasets with period D, the sum of the shares.

    In the first n places dataset i stands n shares[i] / D times, with an error below 1. The sequence is that
    of Tijdeman, "The chairman assignment problem", 1980.

    Args:
        shares: How often each dataset stands in one period.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self.shares = list(shares)
        self.period = sum(self.shares)
        self.table = np.array(_sequence(self.shares), np.int64)
        self._places = [np.flatnonzero(self.table == i) for i in range(len(self.shares))]

    def at(self, places: Ints) -> Ints:
        """The dataset at each place."""
        found: Ints = self.table[places % self.period]
        return found

    def count(self, dataset: int, places: Ints) -> Ints:
        """How often the dataset stands before each place."""
        whole, rest = np.divmod(places, self.period)
        return whole * self.shares[dataset] + np.searchsorted(self._places[dataset], rest)

    def place(self, dataset: int, numbers: Ints) -> Ints:
        """The place at which the dataset stands for the n-th time, n from 0: the inverse of `count`."""
        whole, rest = np.divmod(numbers, self.shares[dataset])
        return whole * self.period + self._places[dataset][rest]


def _sequence(shares: list[int]) -> list[int]:
    period, some = sum(shares), 2 * len(shares) - 2
    if not some:
        return [0] * period
    # After n places, a dataset may come next if its share of n + 1 places exceeds its places so far by
    # 1 / some. Of the datasets that may come next, the one is chosen that would lag by 1 - 1 / some first.
    had = [0] * len(shares)
    early = [(-(-period // (some * share)), i) for i, share in enumerate(shares)]
    heapq.heapify(early)
    ready: list[tuple[float, int]] = []
    found = []
    for place in range(1, period + 1):
        while early and early[0][0] <= place:
            _, i = heapq.heappop(early)
            heapq.heappush(ready, (((had[i] + 1) * some - 1) * period / (some * shares[i]), i))
        _, i = heapq.heappop(ready)
        found.append(i)
        had[i] += 1
        if had[i] < shares[i]:
            heapq.heappush(early, (-(-(had[i] * some + 1) * period // (some * shares[i])), i))
    return found


class Draws(NamedTuple):
    """What n positions draw: the dataset, its epoch, and the position in that epoch, each int64 [n]."""

    dataset: Ints
    epoch: Ints
    position: Ints


class _Turn(NamedTuple):
    """One epoch of a dataset, as the mixture draws it.

    A lane of the mixture may draw more or fewer items than the same lane of the dataset has.

    Attributes:
        end: The first position of the mixture before which the epoch is complete.
        before: How many items each lane drew before this epoch, [lanes].
        drawn: How many items each lane draws in this epoch, [lanes].
        sizes: How many items each lane of the dataset has, [lanes].
        more: Running sum of the items that lanes draw beyond what they have, [lanes].
        less: Running sum of the items that lanes have beyond what they draw, [lanes].
    """

    end: int
    before: Ints
    drawn: Ints
    sizes: Ints
    more: Ints
    less: Ints


class MixtureOrder:
    """The order of one epoch of a mixture: positions <-> draws.

    Args:
        schedule: Which dataset stands at which place.
        sizes: How many items an epoch of each dataset has.
        lanes: How many lanes there are.
        stop: When the epoch of the mixture ends. "first": when one of the datasets was drawn completely.
            "all": when all of them were. "never": it does not end.

    Attributes:
        total: How many positions the epoch has; ENDLESS if it does not end.
    """

    def __init__(self, schedule: Schedule, sizes: Sequence[int], lanes: int, stop: str) -> None:
        self.schedule, self.sizes, self.lanes = schedule, list(sizes), lanes
        self._lane = np.arange(lanes, dtype=np.int64)
        self._before = [schedule.count(i, self._lane) for i in range(len(self.sizes))]
        self._turns: RecentValues[tuple[int, int], _Turn] = RecentValues(lambda _: 1, _TURNS)
        self.total = ENDLESS
        if stop != "never":
            ends = [self._boundary(dataset, size) for dataset, size in enumerate(self.sizes)]
            self.total = min(ends) if stop == "first" else max(ends)

    def turns(self, dataset: int) -> int:
        """How many epochs of a dataset begin in one epoch of the mixture. Only if the mixture ends."""
        return ceil(Fraction(self.drawn(dataset, self.total), self.sizes[dataset]))

    def drawn(self, dataset: int, position: int) -> int:
        """How many draws of a dataset come before a position."""
        return int(self._drawn(dataset, position).sum())

    def first_passes(self, count: int) -> int:
        """The first position before which each dataset was drawn completely `count` times."""
        return max(self._boundary(number, count * size) for number, size in enumerate(self.sizes))

    def locate(self, positions: ArrayLike) -> Draws:
        """What each position draws.

        Raises:
            IndexError: A position is not in the epoch.
        """
        wanted = np.asarray(positions, np.int64)
        wrong = wanted[(wanted < 0) | (wanted >= self.total)]
        if wrong.size:
            raise IndexError(f"position {wrong.flat[0]} is outside 0 .. {self.total - 1}")
        lane = wanted % self.lanes
        place = wanted // self.lanes + lane
        dataset = self.schedule.at(place)
        epoch, position = np.empty_like(wanted), np.empty_like(wanted)
        for number, rows in groups(dataset):
            draw = self.schedule.count(number, place[rows]) - self._before[number][lane[rows]]
            mine, first = wanted[rows], int(wanted[rows].min())
            now = int(self._drawn(number, first).sum()) // self.sizes[number]
            left = np.ones(len(rows), np.bool_)
            while left.any():
                turn = self._turn(number, now)
                some = left & (mine < turn.end)
                epoch[rows[some]] = now
                position[rows[some]] = self._draw(turn, lane[rows[some]], draw[some])
                left &= ~some
                now += 1
        return Draws(dataset, epoch, position)

    def position(self, dataset: int, epoch: int, position: int) -> int:
        """The position of the mixture that draws a position of a dataset's epoch: the inverse of `locate`.

        Raises:
            IndexError: The dataset has no such position, or the mixture ends before it is drawn.
        """
        if not 0 <= position < self.sizes[dataset]:
            raise IndexError(f"position {position} is outside 0 .. {self.sizes[dataset] - 1}")
        turn = self._turn(dataset, epoch)
        number, lane = divmod(position, self.lanes)
        over = number - int(turn.drawn[lane])
        if over >= 0:
            spare = int(turn.less[lane - 1] if lane else 0) + over
            lane = int(np.searchsorted(turn.more, spare, side="right"))
            number = int(turn.sizes[lane]) + spare - int(turn.more[lane - 1] if lane else 0)
        draw = np.array([number + turn.before[lane] + self._before[dataset][lane]], np.int64)
        found = int(self.schedule.place(dataset, draw)[0] - lane) * self.lanes + lane
        if found >= self.total:
            raise IndexError(f"position {position} of dataset {dataset}, epoch {epoch}, is not drawn")
        return found

    def _draw(self, turn: _Turn, lane: Ints, draw: Ints) -> Ints:
        """The positions within a dataset's epoch that lanes draw; `draw` counts the draws of each lane."""
        number = draw - turn.before[lane]
        over = number - turn.sizes[lane]
        beyond = over >= 0
        if beyond.any():
            # Lanes run out a few draws apart. A lane without items draws what other lanes will leave.
            spare = np.concatenate(([0], turn.more))[lane[beyond]] + over[beyond]
            other = np.searchsorted(turn.less, spare, side="right")
            number[beyond] = turn.drawn[other] + spare - np.concatenate(([0], turn.less))[other]
            lane = lane.copy()
            lane[beyond] = other
        return number * self.lanes + lane

    def _drawn(self, dataset: int, position: int) -> Ints:
        """How many draws of a dataset each lane has made before a position."""
        rounds, rest = divmod(position, self.lanes)
        places = rounds + self._lane + (self._lane < rest)
        return self.schedule.count(dataset, places) - self._before[dataset]

    def _boundary(self, dataset: int, draws: int) -> int:
        """The first position before which a dataset was drawn `draws` times."""
        if not draws:
            return 0
        # The draws of a lane always differ from its share by less than 2.
        per_round = self.lanes * self.schedule.shares[dataset]
        slack = 2 * self.lanes
        low = max(0, (draws - slack) * self.schedule.period // per_round)
        high = (draws + slack) * self.schedule.period // per_round + 1
        while low < high:
            middle = (low + high) // 2
            if int(self._drawn(dataset, middle * self.lanes).sum()) >= draws:
                high = middle
            else:
                low = middle + 1
        before = int(self._drawn(dataset, (low - 1) * self.lanes).sum())
        mine = np.flatnonzero(self.schedule.at(low - 1 + self._lane) == dataset)
        return (low - 1) * self.lanes + int(mine[draws - before - 1]) + 1

    def _turn(self, dataset: int, epoch: int) -> _Turn:
        found = self._turns.get((dataset, epoch))
        if found is None:
            size = self.sizes[dataset]
            end = self._boundary(dataset, (epoch + 1) * size)
            before = self._drawn(dataset, self._boundary(dataset, epoch * size))
            drawn, sizes = self._drawn(dataset, end) - before, lane_sizes(size, self.lanes)
            more, less = np.maximum(drawn - sizes, 0), np.maximum(sizes - drawn, 0)
            found = _Turn(end, before, drawn, sizes, np.cumsum(more), np.cumsum(less))
            self._turns.put((dataset, epoch), found)
        return found
