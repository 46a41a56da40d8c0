"""Histograms: percentiles within 10 %, over the whole range, and after a bucket was full."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from shardstream.counters.cells import Cells, bucket
from shardstream.counters.layout import BUCKETS, stage
from shardstream.counters.recorder import Recorder
from shardstream.counters.snapshots import histogram_of

WAIT, BYTES = stage("wait"), stage("request_bytes")
times = st.floats(1e-6, 3600).filter(lambda value: value >= 1e-6)


@given(st.lists(times, min_size=1, max_size=200), st.sampled_from([0, 1, 50, 95, 99, 100]))
def test_percentiles_are_right_within_a_tenth(values: list[float], percent: float) -> None:
    mine = Recorder()
    for value in values:
        mine.span(WAIT, 0.0, value)
    found = histogram_of(mine, WAIT)
    true = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    assert abs(found.percentile(percent) / true - 1) < 0.1
    assert found.count == len(values)
    assert math.isclose(found.sum, sum(values), rel_tol=1e-9)


@given(st.integers(0, 1 << 40))
def test_any_number_of_bytes_has_a_bucket(size: int) -> None:
    mine = Cells()
    mine.observe(BYTES, bucket(size), size, 1)
    assert sum(histogram_of(mine, BYTES).buckets) == 1


def test_many_equal_events_are_counted_at_once() -> None:
    mine = Recorder()
    mine.span(WAIT, 5.0, 6.0, 10)
    found = histogram_of(mine, WAIT)
    assert (found.count, found.sum) == (10, 1.0)
    assert abs(found.percentile(50) / 0.1 - 1) < 0.1


def test_a_full_bucket_halves_its_histogram() -> None:
    mine = Cells()
    at = WAIT * BUCKETS + bucket(8e3)
    mine.buckets[at], mine.buckets[at + 8] = 2**32 - 1, 2**31
    mine.slots[2 * WAIT] = 2**32 + 2**31
    mine.observe(WAIT, bucket(8e3), 0.008, 1)
    found = histogram_of(mine, WAIT)
    assert found.count == 2**32 + 2**31 + 1
    assert found.buckets[at] == 2 * found.buckets[at + 8] - 1
    assert abs(found.percentile(60) / 0.008 - 1) < 0.1
    assert abs(found.percentile(70) / 0.016 - 1) < 0.1


def test_what_came_since_an_earlier_look() -> None:
    mine = Recorder()
    mine.span(WAIT, 0.0, 0.001)
    before = histogram_of(mine, WAIT)
    mine.span(WAIT, 0.0, 1.0)
    late = histogram_of(mine, WAIT).since(before)
    assert (late.count, round(late.percentile(0), 1)) == (1, 1.0)
    assert late.plus(before).buckets == histogram_of(mine, WAIT).buckets
    assert histogram_of(Recorder(), WAIT).percentile(99) == 0.0
