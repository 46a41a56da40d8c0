"""Several datasets in fixed proportions: which of them each position draws from, and which sample.

A sequence of datasets with period D is drawn up once. The n-th draw of lane l is of the dataset at
place n + l of that sequence, so that each run of positions within a round of lanes is a stretch of
it. Draw m of a dataset, counted in the order of the mixture, is of its epoch m div N.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, lcm
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.errors import OptionError
from shardstream.order.lanes import groups, lane_sizes

__all__ = ["ENDLESS", "MixtureOrder", "Schedule", "shares"]

Ints = NDArray[np.int64]

ENDLESS = 1 << 62
PERIOD = 1 << 16  # the longest: weights that need a longer one are rounded to multiples of 1 / PERIOD
_TURNS = 256  # how many epochs of datasets are kept in mind


def shares(weights: Sequence[float | int | Fraction]) -> list[int]:
    """Whole numbers in the proportions of the weights: exact if their sum is at most PERIOD, else the
    nearest of sum PERIOD, each at least 1. A float counts as the decimal number that it is printed as.
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
        # The one that is farthest from its share, in the direction in which it has to go.
        gaps = [(step * (part * PERIOD - n), -i) for i, (part, n) in enumerate(zip(parts, found, strict=True))
                if n + step > 0]  # fmt: skip
        found[-max(gaps)[1]] += step
    return found


class Schedule:
    """An endless sequence of datasets, periodic, in which dataset i has the part shares[i] / D.

    After n places dataset i has stood there n shares[i] / D times, give or take less than one: the
    sequence is that of Tijdeman, "The chairman assignment problem", 1980.
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
        """Where the dataset stands for the n-th time, from 0: the inverse of `count`."""
        whole, rest = np.divmod(numbers, self.shares[dataset])
        return whole * self.period + self._places[dataset][rest]


def _sequence(shares: list[int]) -> list[int]:
    period, some = sum(shares), 2 * len(shares) - 2
    if not some:
        return [0] * period
    # With n places filled, a dataset may come next once its share of n + 1 exceeds what it had by
    # 1 / some; of those that may, the one comes first that would be the first to lag by 1 - 1 / some.
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
    """What some positions draw: the dataset, its epoch, and the position in that epoch, int64 [n]."""

    dataset: Ints
    epoch: Ints
    position: Ints


class _Turn(NamedTuple):
    """One epoch of a dataset. Arrays over lanes.

    end: the position of the mixture before which it is complete.  before: what each lane drew ahead of
    it.  drawn, held: what each lane draws in it, and has of it.  more, less: the running sums of what
    lanes draw beyond what they have, and of what they have beyond what they draw.
    """

    end: int
    before: Ints
    drawn: Ints
    held: Ints
    more: Ints
    less: Ints


class MixtureOrder:
    """The order of one epoch of a mixture: positions <-> draws.

    sizes: the items of an epoch of each dataset.  stop: "first" ends the epoch when the first dataset has
    been drawn completely, "all" when the last one has, "never" never.
    """

    def __init__(self, schedule: Schedule, sizes: Sequence[int], lanes: int, stop: str) -> None:
        self.schedule, self.sizes, self.lanes = schedule, list(sizes), lanes
        self._lane = np.arange(lanes, dtype=np.int64)
        self._before = [schedule.count(i, self._lane) for i in range(len(self.sizes))]
        self._turns: OrderedDict[tuple[int, int], _Turn] = OrderedDict()
        self.total = ENDLESS
        if stop != "never":
            ends = [self._boundary(dataset, size) for dataset, size in enumerate(self.sizes)]
            self.total = min(ends) if stop == "first" else max(ends)

    def turns(self, dataset: int) -> int:
        """How many epochs of a dataset an epoch of the mixture begins; the mixture must end."""
        return ceil(Fraction(int(self._drawn(dataset, self.total).sum()), self.sizes[dataset]))

    def locate(self, positions: ArrayLike) -> Draws:
        """What each position draws."""
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
        """Where a dataset's position of one of its epochs is drawn: the inverse of `locate`."""
        if not 0 <= position < self.sizes[dataset]:
            raise IndexError(f"position {position} is outside 0 .. {self.sizes[dataset] - 1}")
        turn = self._turn(dataset, epoch)
        number, lane = divmod(position, self.lanes)
        over = number - int(turn.drawn[lane])
        if over >= 0:
            spare = int(turn.less[lane - 1] if lane else 0) + over
            lane = int(np.searchsorted(turn.more, spare, side="right"))
            number = int(turn.held[lane]) + spare - int(turn.more[lane - 1] if lane else 0)
        draw = np.array([number + turn.before[lane] + self._before[dataset][lane]], np.int64)
        found = int(self.schedule.place(dataset, draw)[0] - lane) * self.lanes + lane
        if found >= self.total:
            raise IndexError(f"position {position} of dataset {dataset}, epoch {epoch}, is not drawn")
        return found

    def _draw(self, turn: _Turn, lane: Ints, draw: Ints) -> Ints:
        """The positions within a dataset's epoch of some draws of lanes."""
        number = draw - turn.before[lane]
        over = number - turn.held[lane]
        beyond = over >= 0
        if beyond.any():
            # Lanes run out a few draws apart. Who has none left takes what others will leave.
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
        """The first position before which a dataset was drawn so many times."""
        if not draws:
            return 0
        # A lane is never two draws or more away from its share.
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
        found = self._turns.pop((dataset, epoch), None)
        if found is None:
            size = self.sizes[dataset]
            end = self._boundary(dataset, (epoch + 1) * size)
            before = self._drawn(dataset, self._boundary(dataset, epoch * size))
            drawn, held = self._drawn(dataset, end) - before, lane_sizes(size, self.lanes)
            more, less = np.maximum(drawn - held, 0), np.maximum(held - drawn, 0)
            found = _Turn(end, before, drawn, held, np.cumsum(more), np.cumsum(less))
        self._turns[dataset, epoch] = found
        while len(self._turns) > _TURNS:
            self._turns.popitem(last=False)
        return found
