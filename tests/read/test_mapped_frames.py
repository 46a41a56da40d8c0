"""The frames that a unit reads in mapped files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardstream.read.mapped_frames import InPlace


class Local:
    """Nothing is verified."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def verified(self, shard: int) -> Any:
        return np.zeros(self.sizes[shard], np.bool_)


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 39)), max_size=60)


@given(rows, st.sampled_from([40, 100_000]))
def test_each_frame_once_of_few_frames_or_of_many(some: list[tuple[int, int]], count: int) -> None:
    sizes = [count, count + 3, count + 1]
    shards = [2, -1, 0, 1]  # of each place
    reader = SimpleNamespace(
        manifest=SimpleNamespace(shards=[SimpleNamespace(frames=size) for size in sizes]), local=Local(sizes)
    )
    place, frames = (np.array(column, np.int64) for column in (zip(*some, strict=True) if some else ([], [])))
    unit = InPlace(SimpleNamespace(reader=reader), shards, place, frames)  # type: ignore[arg-type]
    wanted = sorted({(shards[at], frame) for at, frame in some if shards[at] >= 0})
    assert sorted(unit.unverified) == wanted
