"""The end of an epoch, for any number of samples, ranks and batch size, from any position."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.dataset import OrderedDataset
from shardstream.dataset.batch_maker import BatchMaker
from shardstream.dataset.contents import Contents
from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.requests import Request


class NoFrames:
    """A source that is asked for nothing."""

    def fetch_ahead(self, frames: Any) -> None: ...
    def check_again(self) -> None: ...
    def memory(self) -> dict[str, int]:
        return {}

    def limit_idle(self, frames: int, batches: int) -> tuple[int, int]:
        return 0, 0

    def counters(self) -> dict[str, Any]:
        return {}

    def fetch(self, shard: int, frame: int) -> Any:
        raise NotImplementedError

    def recycle(self, buffer: Any) -> None:
        raise NotImplementedError

    def name(self, shard: int, frame: int) -> str:
        raise NotImplementedError


class PositionUnit:
    """Batches that are made of their positions alone."""

    needs: ClassVar[list[Any]] = []
    unverified: ClassVar[list[Any]] = []
    volume, grows, direct = 0, 0, True

    def __init__(self, request: Request) -> None:
        self._request, self.sizes = request, request.sizes

    def prepare(self) -> None: ...

    def build(self, frames: Any) -> Iterator[Any]:
        yield from np.split(self._request.positions, np.cumsum(self.sizes)[:-1])

    def parts(self, singles: bool) -> list[Any]:
        return []


class PositionMaker(BatchMaker):
    """Batches that hold their positions."""

    transforms, cheap = False, True

    def watching(self) -> bool:
        return False

    def collated(self, collate: Any) -> Any:
        return lambda positions: {"position": torch.from_numpy(positions.copy())}

    def singles(self, built: Any) -> tuple[Any, None]:
        return built, None

    def items(self, made: Any) -> Any:
        return made


class Positions(Contents[None]):
    """A dataset whose items are their positions."""

    planned_at_once, total, remote, source, maker = 7, 0, False, NoFrames(), PositionMaker("positions")

    def __init__(self, total: int, rank: int, size: int) -> None:
        super().__init__("positions", None, ss.Cache(), DatasetRank(ss.Topology(rank, size)))
        self.total = total

    def order(self, epoch: int, lanes: int | None = None) -> None: ...
    def draws(self, order: None, positions: Any) -> Iterator[Any]:
        return iter(())

    def units(self, order: None, requests: Any, options: Any) -> Iterator[Any]:
        yield from map(PositionUnit, requests)

    def tell_needs(self, plan: Any, delivery: Any, keep: int) -> None: ...
    def identity(self) -> dict[str, Any]:
        return {}

    def follow(self, state: Any) -> Any:
        return lambda: None

    def described(self) -> dict[str, str]:
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
            loader = ss.StreamingLoader(OrderedDataset(Positions(total, rank, size)), batch_size, last=last)
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
