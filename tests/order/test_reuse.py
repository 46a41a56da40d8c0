"""When frames are used: of whole datasets roughly, of selections exactly which, and never too early."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardstream.order.lanes import Order
from shardstream.order.reuse import Share, lanes_of, last_positions, next_uses
from shardstream.order.selection import Selection
from shardstream.order.shuffle import Shuffle

DATASETS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=7)
SHUFFLES = st.none() | st.builds(
    Shuffle,
    seed=st.integers(0, 99),
    lanes=st.integers(1, 9),
    window=st.integers(1, 5),
    scope=st.sampled_from(["epoch", "lane"]),
)


@given(DATASETS, SHUFFLES, st.data())
def test_frames_of_a_selection(
    dataset: list[list[int]], shuffle: Shuffle | None, data: st.DataObject
) -> None:
    firsts = [np.concatenate([[0], np.cumsum(frames)]) for frames in dataset]
    sizes = np.array([first[-1] for first in firsts], np.int64)
    chosen = [sorted(data.draw(st.sets(st.integers(0, size - 1)))) for size in sizes.tolist()]
    selection = Selection(sizes, ((n, np.array(kept, np.int64)) for n, kept in enumerate(chosen)))
    lanes = 1 if shuffle is None else shuffle.lanes_for(1)
    order = Order(
        selection.counts,
        lambda shard: selection.frame_first(shard, firsts[shard]),
        shuffle,
        0,
        lanes,
        selection.chosen,
    )
    for shard, kept in enumerate(chosen):
        count = len(dataset[shard])
        bounds = np.searchsorted(kept, firsts[shard])
        frames = np.flatnonzero(np.diff(bounds))
        share = Share(frames, np.append(bounds[frames], len(kept)))
        last = last_positions(order, shard, count, share)
        lane = lanes_of(order, shard, count, share)
        for frame in range(count):
            mine = [n for n in kept if firsts[shard][frame] <= n < firsts[shard][frame + 1]]
            assert (last[frame] < 0) == (not mine)
            if shuffle is None or shuffle.scope == "epoch":
                # Offsets in lanes: those of several lanes have no order among them.
                positions = [order.position(shard, number) for number in mine]
                if mine and lane[frame] >= 0:
                    assert {position % lanes for position in positions} == {int(lane[frame])}
                    assert max(positions) <= last[frame]
        uses = next_uses(last, last, order.total, 0.5)
        assert np.isinf(uses[last < 0]).all()
        assert np.isfinite(uses[last >= 0]).all()
