"""The end of an epoch, for any number of samples, ranks and batch size, from any position."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.dataset.base import OrderedDataset


class Positions(OrderedDataset):
    """A dataset whose items are their positions."""

    ahead = 7
    total = 0

    def __init__(self, total: int, rank: int, size: int) -> None:
        super().__init__("positions", False, None, ss.Topology(rank, size), None)
        self.total = total

    def stream(self, epoch: int, requests: Any, finish: Any, *_: Any) -> Iterator[Any]:
        for request in requests:
            for positions in np.split(request.positions, np.cumsum(request.sizes)[:-1]):
                yield finish(positions)

    def collated(self, collate: Any) -> Any:
        return lambda positions: {"position": torch.from_numpy(positions.copy())}

    def identity(self) -> dict[str, Any]:
        return {}


@given(
    total=st.integers(1, 200),
    size=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 64]),
    batch_size=st.integers(1, 9),
    last=st.sampled_from(["drop", "pad", "short"]),
    start=st.integers(0, 200),
)
def test_all_ranks_end_together_and_give_each_sample_once(total, size, batch_size, last, start):
    start = min(start, total)
    whole, rest = divmod(total - start, batch_size * size)
    count = whole + (rest > 0 and last != "drop")
    seen: list[int] = []
    pads: list[int] = []
    for rank in range(size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an epoch without a batch is tested elsewhere
            loader = ss.StreamingLoader(Positions(total, rank, size), batch_size, last=last)
        loader.load_state_dict({"version": 1, "epoch": 0, "position": start, "lanes": 1})
        batches = list(loader)
        assert len(batches) == count
        for number, batch in enumerate(batches):
            mine = batch["position"].tolist()
            marks = batch["__pad__"].tolist() if last != "drop" else [False] * len(mine)
            assert len(marks) == len(mine) > 0
            if number < whole or last == "pad":
                assert len(mine) == batch_size
            if number < whole:
                assert not any(marks)
            elif last == "short":
                assert not any(marks) or len(mine) == 1
            seen += [position for position, mark in zip(mine, marks, strict=True) if not mark]
            pads += [position for position, mark in zip(mine, marks, strict=True) if mark]
    assert sorted(seen) == list(range(start, total if last != "drop" else start + whole * batch_size * size))
    if last == "pad" and rest:
        # Padding is the epoch's beginning, in order, as often round as it takes.
        assert sorted(pads) == sorted(number % total for number in range(batch_size * size - rest))
