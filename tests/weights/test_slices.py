"""Slices as ranges: each element where it belongs, and not much more than that is read."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardstream.slices import Run
from shardstream.weights.slices import Rows, plan_slice


@st.composite
def slices(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    offsets = [draw(st.integers(0, size)) for size in shape]
    return (
        shape,
        offsets,
        [draw(st.integers(0, size - first)) for size, first in zip(shape, offsets, strict=True)],
    )


@given(slices(), st.integers(0, 40))
def test_the_plan_gives_the_slice(given: tuple[list[int], list[int], list[int]], gap: int) -> None:
    shape, offsets, sizes = given
    whole = np.arange(math.prod(shape)).reshape(shape)
    cut = tuple(slice(first, first + size) for first, size in zip(offsets, sizes, strict=True))
    expected = whole[cut]
    plan = plan_slice(shape, offsets, sizes, 4, gap)
    if isinstance(plan, Rows):
        found = whole[plan.first : plan.first + plan.length][(slice(None), *cut[1:])]
    else:
        found = np.full(expected.size, -1)
        for run in plan:
            found[run.target : run.target + run.length] = whole.reshape(-1)[
                run.source : run.source + run.length
            ]
    assert np.array_equal(found.reshape(-1), expected.reshape(-1))


def test_the_first_dimension_is_one_run() -> None:
    assert plan_slice((8, 3, 5), (2, 0, 0), (4, 3, 5), 2, 0) == [Run(30, 0, 60)]
    assert plan_slice((8, 3, 5), (2, 1, 0), (1, 2, 5), 2, 0) == [Run(35, 0, 10)]
    assert plan_slice((), (), (), 8, 0) == [Run(0, 0, 1)]


def test_inner_dimensions_are_rows_until_twice_the_bytes() -> None:
    assert plan_slice((100, 1000), (0, 500), (100, 500), 2, 0) == Rows(0, 100)
    runs = plan_slice((100, 1000), (0, 750), (100, 250), 2, 0)
    assert isinstance(runs, list)
    assert (len(runs), runs[1]) == (100, Run(1750, 250, 250))
    assert plan_slice((100, 1000), (10, 750), (20, 250), 2, 1500) == Rows(
        10, 20
    )  # 1,500 bytes between two runs
    # A row that is larger than 4 MiB is never read for a part of it.
    assert isinstance(plan_slice((4, 3, 1 << 20), (0, 0, 0), (4, 2, 1 << 20), 2, 1 << 30), list)
