"""When blocks are needed next."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardstream.storage.blocks import Schedule


class Reader:
    """Whose knowledge lasts as long as it lives."""


NAMES = st.sampled_from(["index", "whole", *(f"{n}{raw}" for n in range(6) for raw in ("", ".raw"))])


@given(st.lists(st.lists(st.floats(0, 3), max_size=6), max_size=2), st.lists(NAMES, max_size=8))
def test_many_blocks_are_looked_up_as_one_is(known: list[list[float]], names: list[str]) -> None:
    schedule, readers = Schedule(), [Reader() for _ in known]
    for reader, uses in zip(readers, known, strict=True):
        schedule.set(reader, lambda group, uses=uses: np.array(uses) if group == "ours" else None)
    found = schedule.next_uses("ours", names)
    if known:
        assert found == [schedule.group("ours")(name) for name in names]
    else:
        assert all(1 <= use < 2 for use in found)
    assert all(1 <= use < 2 for use in schedule.next_uses("another's", names))
