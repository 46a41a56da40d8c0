"""The order: a bijection, the same for every world size, pinned for ever."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.errors import OptionError
from shardstream.order.lanes import (
    Order,
    distinct,
    distinct_below,
    in_order,
    lane_index,
    lane_position,
    places_below,
)
from shardstream.order.shuffle import SHARDS, ShardOrder, Shuffle, permutation, raw
from shardstream.order.topology import Topology, batches, rank_samples

# A dataset: shards of frames of so many samples.
datasets = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=7)
shuffles = st.none() | st.builds(
    Shuffle,
    seed=st.integers(0, 2**64 - 1),
    lanes=st.integers(1, 70),
    window=st.integers(1, 5),
    scope=st.sampled_from(["epoch", "lane"]),
)


def order_of(dataset: list[list[int]], shuffle: Shuffle | None, epoch: int = 0) -> Order:
    def frame_first(shard: int) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(dataset[shard])]).astype(np.uint64)

    lanes = 1 if shuffle is None else shuffle.lanes_for(1)
    return Order([sum(frames) for frames in dataset], frame_first, shuffle, epoch, lanes)


@given(st.lists(st.integers(-3, 9)))
def test_each_value_once(values):
    array = np.array(values, np.int64)
    assert distinct(array).tolist() == sorted(set(values))
    assert in_order(array).tolist() == list(dict.fromkeys(values))


@given(datasets, shuffles, st.integers(0, 3))
def test_each_sample_has_exactly_one_position(dataset, shuffle, epoch):
    order = order_of(dataset, shuffle, epoch)
    shards, samples = order.locate(np.arange(order.total))
    found = list(zip(shards.tolist(), samples.tolist(), strict=True))
    expected = [(s, i) for s, frames in enumerate(dataset) for i in range(sum(frames))]
    assert sorted(found) == expected
    if shuffle is None:
        assert found == expected
    assert [order.position(*place) for place in found] == list(range(order.total))


@given(datasets, shuffles, st.lists(st.integers(0, 10**6), max_size=20))
def test_any_positions_in_any_order_are_those_of_the_whole(dataset, shuffle, wanted):
    order = order_of(dataset, shuffle)
    wanted = [position % order.total for position in wanted]
    shards, samples = order.locate(np.arange(order.total))
    some_shards, some_samples = order_of(dataset, shuffle).locate(wanted)
    assert some_shards.tolist() == shards[wanted].tolist()
    assert some_samples.tolist() == samples[wanted].tolist()


@given(st.integers(0, 500), st.integers(1, 90))
def test_lanes_are_contiguous_and_invertible(total, lanes):
    positions = np.arange(total)
    indices = lane_index(positions, total, lanes)
    assert sorted(indices.tolist()) == positions.tolist()
    assert lane_position(indices, total, lanes).tolist() == positions.tolist()
    for lane in range(min(lanes, total)):
        mine = indices[lane::lanes]
        assert len(mine) == -(-(total - lane) // lanes)
        assert (np.diff(mine) == 1).all()


@given(datasets, shuffles, st.sampled_from([1, 2, 3, 4, 6, 8, 12, 64, 512]), st.integers(0, 400))
def test_ranks_share_the_positions_from_any_start(dataset, shuffle, size, start):
    order = order_of(dataset, shuffle)
    start %= order.total
    owned = [list(range(Topology(rank, size).first(start), order.total, size)) for rank in range(size)]
    assert sorted(itertools.chain.from_iterable(owned)) == list(range(start, order.total))
    for rank, positions in enumerate(owned):
        assert len(positions) == rank_samples(order.total, rank, size, start)


@given(st.integers(0, 1000), st.integers(1, 70), st.integers(0, 1000))
def test_batches(total, global_batch, start):
    start = min(start, total)
    assert batches(total, global_batch, "drop", start) == (total - start) // global_batch
    for last in ("pad", "short"):
        assert batches(total, global_batch, last, start) == len(range(start, total, global_batch))


def test_a_shard_mixes_within_windows_of_frames():
    first = np.arange(0, 110, 10)
    inside = ShardOrder(first, seed=5, epoch=1, item=3, window=2)
    order = np.concatenate([inside.samples(window) for window in range(5)])
    assert [inside.offset(sample) for sample in order.tolist()] == list(range(100))
    assert sorted(order.tolist()) == list(range(100))
    for window in range(5):
        frames = {sample // 10 for sample in order[window * 20 : window * 20 + 20].tolist()}
        assert len(frames) == 2
    assert order.tolist() != sorted(order.tolist())


def test_seed_epoch_and_shard_each_change_the_order():
    base = permutation(100, 1, 2, SHARDS, 3).tolist()
    for other in ((2, 2, SHARDS, 3), (1, 3, SHARDS, 3), (1, 2, 1, 3), (1, 2, SHARDS, 4)):
        assert permutation(100, *other).tolist() != base


def test_the_order_of_version_1_is_pinned():
    assert permutation(10, 0, 0, SHARDS).tolist() == PINNED_SHARDS
    dataset = [[2, 3], [4], [1, 1, 2]]
    shards, samples = order_of(dataset, Shuffle(seed=7, lanes=2, window=2), 1).locate(range(13))
    assert list(zip(shards.tolist(), samples.tolist(), strict=True)) == PINNED_ORDER
    shuffle = Shuffle(seed=7, lanes=2, window=2, scope="lane")
    shards, samples = order_of(dataset, shuffle, 1).locate(range(13))
    assert list(zip(shards.tolist(), samples.tolist(), strict=True)) == PINNED_LANE_ORDER


def test_positions_outside_are_refused():
    order = order_of([[2], [3]], None)
    for position in (-1, 5):
        with pytest.raises(IndexError, match=str(position)):
            order.locate([position])
    assert order_of([[1]], None).locate([])[0].tolist() == []


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1}, {"seed": 2**64}, {"seed": "x"}, {"lanes": 0}, {"window": 0}, {"window": True},
        {"scope": "world"}, {"scope": None},
    ],
)  # fmt: skip
def test_bad_options_are_named(options):
    name, value = next(iter(options.items()))
    with pytest.raises(OptionError, match=f"{name}={value!r}"):
        Shuffle(**options)


def test_lanes_by_default_are_a_multiple_of_the_ranks():
    for size, lanes in ((1, 64), (3, 66), (64, 64), (65, 65), (48, 96)):
        assert Shuffle().lanes_for(size) == lanes


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (-1, 2), (0, 0), (0.0, 1), (True, 2)])
def test_bad_topologies_are_refused(rank, size):
    with pytest.raises(OptionError):
        Topology(rank, size)


def test_a_billion_samples_are_located_without_arrays_over_samples():
    sizes = [100_000] * 100_000
    asked = []

    def frame_first(shard: int) -> np.ndarray:
        asked.append(shard)
        return np.arange(0, 100_001, 1000)

    order = Order(sizes, frame_first, Shuffle(seed=1), 3, 64)
    assert order.total == 10**10
    shards, samples = order.locate(np.arange(9 * 10**9, 9 * 10**9 + 64))
    assert len(set(shards.tolist())) == len(asked)
    assert order.position(int(shards[5]), int(samples[5])) == 9 * 10**9 + 5


def test_any_part_of_a_random_sequence_is_that_of_the_whole():
    whole = raw(50, 1, 2, 3, 4)
    for start in range(20):
        assert raw(7, 1, 2, 3, 4, start).tolist() == whole[start : start + 7].tolist()


@given(datasets, st.integers(0, 99), st.integers(1, 70), st.integers(0, 5))
def test_with_scope_lane_each_lane_keeps_its_samples(dataset, seed, lanes, epoch):
    shuffle = Shuffle(seed, lanes, scope="lane")

    def lane_contents(epoch: int) -> list[set[tuple[int, int]]]:
        order = order_of(dataset, shuffle, epoch)
        found = list(zip(*(part.tolist() for part in order.locate(range(order.total))), strict=True))
        return [set(found[lane::lanes]) for lane in range(lanes)]

    assert lane_contents(epoch) == lane_contents(epoch + 1)


def test_with_scope_lane_the_order_within_lanes_changes():
    orders = [order_of([[3] * 6] * 6, Shuffle(1, 2, scope="lane"), epoch) for epoch in (0, 1)]
    first, second = ([part.tolist() for part in order.locate(range(108))] for order in orders)
    assert first != second
    assert list(dict.fromkeys(first[0][::2])) != list(dict.fromkeys(second[0][::2]))


@given(datasets, shuffles, st.integers(0, 3))
def test_shards_are_named_without_frames(dataset, shuffle, epoch):
    lanes = 1 if shuffle is None else shuffle.lanes_for(1)
    blind = Order([sum(frames) for frames in dataset], None, shuffle, epoch, lanes)
    order = order_of(dataset, shuffle, epoch)
    positions = np.arange(order.total)
    assert blind.shards(positions).tolist() == order.locate(positions)[0].tolist()


@given(datasets, shuffles, st.integers(1, 3), st.sampled_from(["drop", "pad", "short"]))
def test_all_world_sizes_give_the_same_global_batches(dataset, shuffle, times, last):
    order = order_of(dataset, shuffle)
    size = 64 * times
    number = batches(order.total, size, last)
    for ranks in (1, 2, 4, 8, 64):
        for batch in range(number):
            owned = [
                range(Topology(r, ranks).first(batch * size), (batch + 1) * size, ranks) for r in range(ranks)
            ]
            assert len({len(positions) for positions in owned}) == 1
            assert sorted(itertools.chain(*owned)) == list(range(batch * size, (batch + 1) * size))


PINNED_SHARDS = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
PINNED_ORDER = [
    (1, 1),
    (2, 0),
    (1, 3),
    (0, 4),
    (1, 0),
    (0, 1),
    (1, 2),
    (0, 3),
    (2, 1),
    (0, 2),
    (2, 2),
    (0, 0),
    (2, 3),
]
PINNED_LANE_ORDER = [
    (0, 1),
    (0, 3),
    (0, 0),
    (0, 4),
    (0, 2),
    (1, 1),
    (2, 3),
    (1, 0),
    (2, 0),
    (1, 2),
    (2, 2),
    (1, 3),
    (2, 1),
]


@given(st.lists(st.integers(0, 99)), st.sampled_from([100, 100_000]))
def test_values_below_a_bound_are_found_by_marks_or_by_sorting(some: list[int], most: int) -> None:
    values = np.array(some, np.int64)  # of fewer than 7 values the first bound is many times as large, too
    wanted, where = np.unique(values, return_inverse=True)
    assert distinct_below(values, most).tolist() == wanted.tolist()
    found, places = places_below(values, most)
    assert (found.tolist(), places.tolist()) == (wanted.tolist(), where.tolist())
