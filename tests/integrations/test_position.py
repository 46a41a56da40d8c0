"""The place after some batches, and what frameworks that count batches make of a state."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.integrations.lightning import TrainLoader
from shardstream.integrations.position import after, delivered


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("position")
    (folder / "a.jsonl").write_text("".join(f'{{"id": "{n}", "text": "t{n}"}}\n' for n in range(21)))
    ss.pack(folder / "a.jsonl", folder / "out", workers=1)
    return str(folder / "out")


def loader(url: str, batch_size: int = 2, size: int = 2, last: str = "drop") -> ss.StreamingLoader:
    ds = ss.StreamingDataset(url, shuffle=ss.Shuffle(seed=1), topology=ss.Topology(0, size))
    return ss.StreamingLoader(ds, batch_size, last=last)


@settings(max_examples=10)
@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from(["drop", "pad", "short"]))
def test_after_is_where_the_loader_comes_to(packed: str, first: int, steps: int, last: str) -> None:
    one = loader(packed, last=last)
    start = after(one, one.state_dict(), first)
    every = (batch["__key__"] for _ in itertools.count() for batch in one)
    wanted = list(itertools.islice(every, first + steps, first + steps + 3))
    # Two ways to the same place.
    assert after(one, start, steps) == after(one, {**start, "epoch": 0, "position": 0}, first + steps)

    other = loader(packed, last=last)
    other.load_state_dict(after(other, start, steps))
    again = (batch["__key__"] for _ in itertools.count() for batch in other)
    assert list(itertools.islice(again, 3)) == wanted


def test_lightning_goes_on_with_other_ranks_and_the_same_global_batch(packed: str) -> None:
    one = TrainLoader(loader(packed))
    next(itertools.islice(one, 2, None))
    state = one.state_dict()
    assert (state["batches"], state["position"]) == (3, 12)
    other = TrainLoader(loader(packed, batch_size=4, size=1))
    other.load_state_dict(state)
    assert len(list(other)) == 2
    assert len(list(other)) == len(other) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_lightning_refuses_another_global_batch(packed: str, batch_size: int) -> None:
    one = TrainLoader(loader(packed))
    next(itertools.islice(one, 2, None))
    with pytest.raises(ss.ShardstreamError, match="ranks x batch_size"):
        TrainLoader(loader(packed, batch_size=batch_size, size=1)).load_state_dict(one.state_dict())


def test_at_the_end_of_an_epoch_lightning_gets_the_next_one(packed: str) -> None:
    one = TrainLoader(loader(packed))
    steps = iter(one)
    for _ in range(len(one)):
        next(steps)
    state = one.state_dict()
    assert (state["epoch"], state["position"], state["batches"]) == (1, 0, 0)
    assert delivered(one.loader, one.loader.state_dict()) == 5


def test_steps_must_be_a_number(packed: str) -> None:
    one = loader(packed)
    with pytest.raises(ss.ShardstreamError, match="steps=-1"):
        after(one, one.state_dict(), -1)
