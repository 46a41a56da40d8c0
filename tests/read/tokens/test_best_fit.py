"""Best-fit-decreasing in steps over sizes gives what the plain algorithm gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardstream.read.tokens.best_fit import best_fit


def plain(sizes: list[int], room: int) -> list[int]:
    """The space left in each bin after best-fit-decreasing, one item at a time."""
    left: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [(space, number) for number, space in enumerate(left) if space >= size]
        if fitting:
            left[min(fitting)[1]] -= size
        else:
            left.append(room - size)
    return left


@given(st.integers(1, 60).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room)))))
def test_the_bins_are_those_of_the_plain_algorithm(case: tuple[int, list[int]]) -> None:
    room, sizes = case
    bins = best_fit(np.array(sizes, np.int64), room)
    loads = np.bincount(bins, weights=sizes).astype(int).tolist() if sizes else []
    assert sorted(loads) == sorted(room - space for space in plain(sizes, room))


def test_a_million_items_take_no_more_steps_than_their_sizes() -> None:
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.lognormal(6, 1.2, 1_000_000).astype(np.int64) + 1, 2049)
    bins = best_fit(sizes, 2049)
    loads = np.bincount(bins, weights=sizes)
    assert loads.max() <= 2049
    assert loads.sum() == sizes.sum()
    assert 1 - loads.mean() / 2049 < 0.001
