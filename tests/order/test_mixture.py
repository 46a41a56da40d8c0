"""Mixtures: exact proportions, each epoch of a dataset exactly once, an inverse, and a pinned order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.errors import OptionError
from shardstream.order.mixture import PERIOD, MixtureOrder, Schedule, shares

parts = st.lists(st.integers(1, 40), min_size=1, max_size=6)
plans = parts.flatmap(
    lambda shares: st.builds(
        MixtureOrder,
        st.just(Schedule(shares)),
        st.lists(st.integers(1, 60), min_size=len(shares), max_size=len(shares)),
        st.sampled_from([1, 2, 3, 4, 6, 8, 12, 64, 512]),
        st.sampled_from(["first", "all", "never"]),
    )
)


def draws(plan: MixtureOrder, most: int = 1200) -> list[tuple[int, int, int]]:
    found = plan.locate(np.arange(min(plan.total, most)))
    return list(zip(*(part.tolist() for part in found), strict=True))


@given(parts)
def test_the_sequence_stays_within_one_of_every_share(shares):
    schedule = Schedule(shares)
    places = np.arange(2 * schedule.period + 1)
    table = schedule.at(places)
    for i, share in enumerate(shares):
        counts = schedule.count(i, places)
        assert counts.tolist() == [0, *np.cumsum(table == i)[:-1].tolist()]
        # Tijdeman's bound, times the period; whole numbers, so that nothing is rounded.
        assert (np.abs(counts * schedule.period - places * share) < schedule.period).all()
        assert schedule.place(i, np.arange(2 * share)).tolist() == np.flatnonzero(table[:-1] == i).tolist()


@given(parts, st.sampled_from([1, 2, 3, 8, 64]))
def test_the_draws_of_a_lane_stay_near_their_shares(shares, lanes):
    plan = MixtureOrder(Schedule(shares), [10**6] * len(shares), lanes, "never")
    period = sum(shares)
    dataset = plan.locate(np.arange(2 * period * lanes)).dataset.reshape(-1, lanes)
    drawn = np.arange(1, len(dataset) + 1)[:, None]
    for i, share in enumerate(shares):
        error = np.abs(np.cumsum(dataset == i, axis=0) * period - drawn * share)
        assert (error[:, 0] < period).all()
        # Lanes begin at different places of the sequence; of two datasets any stretch is as good.
        assert (error < (1 if len(shares) <= 2 else 2) * period).all()
        assert (error[period - 1 :: period] == 0).all()


@given(parts, st.integers(1, 64), st.integers(0, 10**6))
def test_the_positions_of_a_round_stay_within_two_of_every_share(shares, count, start):
    plan = MixtureOrder(Schedule(shares), [10**9] * len(shares), 64, "never")
    dataset = plan.locate(np.arange(start * 64, start * 64 + count)).dataset
    for i, share in enumerate(shares):
        assert abs(int((dataset == i).sum()) * sum(shares) - count * share) < 2 * sum(shares)


@given(plans)
def test_every_epoch_of_a_dataset_is_drawn_exactly_once(plan):
    found = draws(plan)
    assert len(set(found)) == len(found)
    for number, size in enumerate(plan.sizes):
        mine = [(epoch, position) for dataset, epoch, position in found if dataset == number]
        assert [epoch for epoch, _ in mine] == [draw // size for draw in range(len(mine))]
        for epoch in range(len(mine) // size):
            assert sorted(position for turn, position in mine if turn == epoch) == list(range(size))


@given(plans)
def test_each_lane_reads_its_own_lane_of_a_dataset_in_order(plan):
    kept: dict[tuple[int, int, int], int] = {}
    for place, (dataset, epoch, position) in enumerate(draws(plan, 1000)):
        lane = place % plan.lanes
        if position % plan.lanes == lane:
            key = lane, dataset, epoch
            assert kept.get(key, -1) < position
            kept[key] = position


@given(st.integers(200, 400), st.integers(1, 64), parts)
def test_few_draws_leave_their_lane(size, lanes, shares):
    plan = MixtureOrder(Schedule(shares), [size] * len(shares), lanes, "first")
    found = draws(plan, plan.total)
    moved = [p for p, (_, _, position) in enumerate(found) if position % lanes != p % lanes]
    assert len(moved) <= 2 * lanes * len(shares)


@given(plans, st.lists(st.integers(0, 10**9), max_size=20))
def test_seeking_is_iterating(plan, wanted):
    found = draws(plan)
    wanted = [place % len(found) for place in wanted]
    fresh = MixtureOrder(plan.schedule, plan.sizes, plan.lanes, "never").locate(wanted)
    assert list(zip(*(part.tolist() for part in fresh), strict=True)) == [found[place] for place in wanted]


@given(plans)
def test_the_inverse(plan):
    for place, draw in enumerate(draws(plan, 500)):
        assert plan.position(draw[0], draw[1], draw[2]) == place


@given(plans)
def test_where_an_epoch_ends(plan):
    first, last = (
        MixtureOrder(plan.schedule, plan.sizes, plan.lanes, stop).total for stop in ("first", "all")
    )
    # As the order is defined: the n-th draw of lane l is of the dataset at place n + l of the sequence.
    place, lane = np.divmod(np.arange(last), plan.lanes)
    dataset = plan.schedule.table[(place + lane) % plan.schedule.period]
    complete = [
        int(np.flatnonzero(dataset == number)[size - 1]) + 1 for number, size in enumerate(plan.sizes)
    ]
    assert (first, last) == (min(complete), max(complete))
    never = MixtureOrder(plan.schedule, plan.sizes, plan.lanes, "never")
    ends = np.array([first - 1, last - 1])
    assert never.locate(ends).dataset.tolist() == dataset[ends].tolist()


def test_a_place_far_away_is_found_at_once():
    plan = MixtureOrder(Schedule([671, 150, 179]), [10**9, 3 * 10**9, 10**8], 64, "never")
    far = 10**12 + np.arange(64)
    found = plan.locate(far)
    assert set(found.dataset.tolist()) == {0, 1, 2}
    for place, draw in zip(far.tolist(), zip(*(part.tolist() for part in found), strict=True), strict=True):
        assert plan.position(*draw) == place


def test_positions_that_are_not_drawn_are_refused():
    plan = MixtureOrder(Schedule([1, 1]), [4, 100], 1, "first")
    with pytest.raises(IndexError, match=f"position {plan.total}"):
        plan.locate([plan.total])
    for dataset, epoch, position in ((1, 0, 99), (0, 1, 0), (0, 0, 4)):
        with pytest.raises(IndexError, match=f"position {position}"):
            plan.position(dataset, epoch, position)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.7, 0.3], [7, 3]), ([7, 3], [7, 3]), ([1], [1]), ([Fraction(1, 3), Fraction(2, 3)], [1, 2]),
        ([0.671, 0.15, 0.179], [671, 150, 179]), ([2e9, 1e9], [2, 1]), ([np.float64(0.25), 0.75], [1, 3]),
    ],
)  # fmt: skip
def test_weights_with_a_common_denominator_are_exact(weights, expected):
    assert shares(weights) == expected


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_other_weights_are_off_by_less_than_the_stated_precision(weights):
    found = shares(weights)
    assert min(found) >= 1
    whole = sum(map(Fraction, map(str, weights)))
    for weight, share in zip(weights, found, strict=True):
        off = abs(Fraction(str(weight)) / whole - Fraction(share, sum(found)))
        # Those below one part in PERIOD are raised to it, at the cost of the others.
        assert off <= Fraction(len(weights), PERIOD)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "1", True, None, 1j])
def test_bad_weights_are_refused(weight):
    with pytest.raises(OptionError, match="weight"):
        shares([1, weight])


def test_the_order_of_version_1_is_pinned():
    assert Schedule([5, 3, 2]).table.tolist() == PINNED_SEQUENCE
    plan = MixtureOrder(Schedule([2, 1]), [3, 4], 2, "all")
    assert draws(plan) == PINNED_DRAWS


PINNED_SEQUENCE = [0, 1, 0, 2, 0, 1, 0, 2, 1, 0]
PINNED_DRAWS = [
    (0, 0, 0),
    (1, 0, 1),
    (1, 0, 0),
    (0, 0, 1),
    (0, 0, 2),
    (0, 1, 1),
    (0, 1, 0),
    (1, 0, 3),
    (1, 0, 2),
]
