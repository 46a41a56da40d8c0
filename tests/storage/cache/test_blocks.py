"""When blocks are needed next."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardstream.storage.cache.blocks import NextUses


class Reader:
    """Whose knowledge lasts as long as it lives."""


NAMES = st.sampled_from(["index", "whole", *(f"{n}{raw}" for n in range(6) for raw in ("", ".raw"))])


@given(st.lists(st.lists(st.floats(0, 3), max_size=6), max_size=2), st.lists(NAMES, max_size=8))
def test_many_blocks_are_looked_up_as_one_is(known: list[list[float]], names: list[str]) -> None:
    next_uses, readers = NextUses(), [Reader() for _ in known]
    for reader, uses in zip(readers, known, strict=True):
        next_uses.set(reader, lambda group, uses=uses: np.array(uses) if group == "ours" else None)
    found = next_uses.of_blocks("ours", names)
    if known:
        assert found == [next_uses.of_group("ours")(name) for name in names]
    else:
        assert all(1 <= use < 2 for use in found)
    assert all(1 <= use < 2 for use in next_uses.of_blocks("another's", names))
