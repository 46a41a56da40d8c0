"""Ranges of parts: each byte that is wanted once, few requests, whole blocks in long runs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.errors import StorageError
from shardstream.storage.fetch.spans import Part, extent, fill, spans

OBJECT = bytes(range(251)) * 20


def part(start: int, size: int) -> Part:
    return start, memoryview(bytearray(size))


def places(found: list[list[Part]]) -> list[list[tuple[int, int]]]:
    return [[(start, len(view)) for start, view in span] for span in found]


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 1000)), max_size=30),
    st.integers(0, 50),
    st.integers(1, 700),
)
def test_all_parts_are_filled_by_ranges_that_are_no_longer_than_allowed(
    wanted: list[tuple[int, int]], gap: int, most: int
) -> None:
    parts = [part(start, size) for start, size in wanted]
    found = spans(parts, gap, most)
    ends = []
    for span in found:
        start, end = extent(span)
        assert 0 < end - start <= most
        fill(span, start, OBJECT[start:end])
        ends.append((start, end))
    assert [bytes(view) for _, view in parts] == [OBJECT[start : start + size] for start, size in wanted]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))  # nothing twice
    wanted_bytes = {at for start, size in wanted for at in range(start, start + size)}
    assert sum(end - start for start, end in ends) <= len(wanted_bytes) + gap * len(wanted)


def test_neighbours_come_together_and_long_runs_are_cut_at_whole_blocks() -> None:
    assert places(spans([part(30, 5), part(0, 10), part(12, 8)], 4, 100)) == [[(0, 10), (12, 8)], [(30, 5)]]
    assert places(spans([part(3, 25)], 4, 10)) == [[(3, 7)], [(10, 10)], [(20, 8)]]
    assert places(spans([part(8, 4)], 4, 10)) == [[(8, 4)]]  # short enough as it is
    assert spans([part(3, 0)]) == []


def test_no_byte_lies_before_an_object() -> None:
    with pytest.raises(StorageError, match="byte -1 does not exist"):
        spans([part(-1, 3)])
