"""Memory in steps, and the checksums that are made of them."""

from __future__ import annotations

import itertools
import os

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from shardstream.checkpoint import steps as module
from shardstream.checkpoint.layout import CELL, FilePlan
from shardstream.checkpoint.outgoing import Outgoing
from shardstream.checkpoint.steps import steps


@given(st.lists(st.integers(0, 70), max_size=12))
def test_steps_are_the_same_memory(sizes: list[int]) -> None:
    data = os.urandom(sum(sizes))
    ends = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    parts = [memoryview(data)[start:end] for start, end in itertools.pairwise(ends)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STEP", 32)
        found = list(steps(parts))
    assert b"".join(part for step in found for part in step) == data
    lengths = [sum(map(len, step)) for step in found]
    assert all(length == 32 for length in lengths[:-1])
    assert all(0 < length <= 32 for length in lengths[-1:])


@pytest.mark.parametrize("cut", [1, CELL - 1, CELL, CELL + 1, 3 << 19, 5 << 19])
def test_checksums_do_not_depend_on_parts(cut: int) -> None:
    data = os.urandom((5 << 19) + 17)
    view = memoryview(data)
    file = Outgoing(FilePlan("f", b"", (), len(data)))
    file.digest([view[:cut], view[cut:]])
    assert file.digests == [xxhash.xxh3_64_hexdigest(data)]
    cells = [xxhash.xxh3_64_digest(data[start : start + CELL]) for start in range(0, len(data), CELL)]
    assert bytes(file.sums) == b"".join(cells)
