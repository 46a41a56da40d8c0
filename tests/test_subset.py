"""Subsets: the kept samples exactly once, in an order that can be sought, without reading the rest."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import OptionError, StateError
from shardstream.order.lanes import Order
from shardstream.order.selection import Selection
from shardstream.order.shuffle import Shuffle
from tests.corpora import pack_rows


@pytest.fixture
def packed(corpus: Path, tmp_path: Path) -> Path:
    ss.pack(corpus, tmp_path / "packed", workers=1, frame_size="1KiB", shard_size="4KiB")
    return tmp_path / "packed"


def keys(ds: ss.StreamingDataset) -> list[str]:
    return [sample["__key__"] for sample in ds]


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=5),
    st.data(),
    st.none() | st.builds(Shuffle, st.integers(0, 9), st.integers(1, 9), st.integers(1, 3), st.just("lane"))
    | st.builds(Shuffle, st.integers(0, 9), st.integers(1, 9), st.integers(1, 3)),
)  # fmt: skip
def test_an_order_over_a_selection_is_a_bijection(dataset, data, shuffle):
    sizes = np.array([sum(frames) for frames in dataset])
    masks = [np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for n in sizes.tolist()]
    kept = {(shard, i) for shard, mask in enumerate(masks) for i in np.flatnonzero(mask).tolist()}
    selection = Selection(sizes, ((shard, np.flatnonzero(mask)) for shard, mask in enumerate(masks)))
    firsts = [np.concatenate(([0], np.cumsum(frames))) for frames in dataset]
    order = Order(
        selection.counts,
        lambda shard: selection.frame_first(shard, firsts[shard]),
        shuffle,
        3,
        1 if shuffle is None else shuffle.lanes_for(1),
        selection.chosen,
    )
    found = list(zip(*(part.tolist() for part in order.locate(range(order.total))), strict=True))
    assert len(found) == len(kept)
    assert set(found) == kept
    assert [order.position(*place) for place in found] == list(range(order.total))
    for shard, mask in enumerate(masks):
        if not mask.all():
            with pytest.raises(IndexError):
                order.position(shard, int(np.flatnonzero(~mask)[0]))


def test_keys_numbers_and_where_can_name_the_same_samples(packed: Path) -> None:
    whole = ss.StreamingDataset(packed)
    wanted = [f"doc-{number:03d}" for number in range(3, 100, 9)]
    numbers = np.arange(3, 100, 9)
    by_key, by_number = whole.subset(keys=reversed(wanted)), whole.subset(numbers=numbers)
    by_column = whole.subset(where=lambda columns: columns.number % 9 == 3)
    for ds in (by_key, by_number, by_column):
        assert keys(ds) == wanted
        assert len(ds) == len(wanted)
        assert ds[2]["__key__"] == wanted[2]
        assert ds[-1]["__key__"] == wanted[-1]
        assert ds.state_dict()["fingerprint"] == by_key.state_dict()["fingerprint"]
    assert len(whole) == 100


def test_a_predicate_sees_the_columns_of_the_index(packed: Path) -> None:
    ds = ss.StreamingDataset(packed, shuffle=True)
    small = ds.subset(where=lambda c: c.has["txt"] & (c.size["txt"] < 60) & (c.key != "doc-000"))
    expected = {s["__key__"] for s in ds if len(s["txt"].encode()) < 60 and s["__key__"] != "doc-000"}
    assert set(keys(small)) == expected
    both = small.subset(where=lambda c: c.size["txt"] > 30)
    assert set(keys(both)) == {s["__key__"] for s in small if len(s["txt"].encode()) > 30}
    assert keys(small.subset(numbers=[0])) == keys(ds.subset(keys=[small[0]["__key__"]]))


def test_token_counts_are_columns(corpus: Path, tmp_path: Path) -> None:
    ss.pack(corpus, tmp_path / "tokens", workers=1, tokenizer="bytes")
    ds = ss.StreamingDataset(tmp_path / "tokens")
    few = ds.subset(where=lambda c: c.tokens < 100)
    expected = [s["__key__"] for s in ds if len(s["tokens"]) < 100]
    assert 0 < len(expected) < 100
    assert keys(few) == expected


def test_frames_without_kept_samples_are_not_read(packed: Path) -> None:
    ds = ss.StreamingDataset(packed, shuffle=True).subset(numbers=[5, 6])
    loader = ss.StreamingLoader(ds, 2)
    (batch,) = loader
    assert sorted(batch["__key__"]) == ["doc-005", "doc-006"]
    assert loader.stats()["frames"] <= 2


def test_a_state_of_another_selection_is_refused(packed: Path) -> None:
    ds = ss.StreamingDataset(packed, shuffle=True)
    some, other = ds.subset(numbers=range(50)), ds.subset(numbers=range(49))
    seen = []
    loader = ss.StreamingLoader(some, 5)
    for batch in loader:
        seen += batch["__key__"]
        if len(seen) == 20:
            break
    state = loader.state_dict()
    again = ss.StreamingLoader(ds.subset(numbers=range(50)), 10)
    again.load_state_dict(state)
    for batch in again:
        seen += batch["__key__"]
    assert sorted(seen) == [f"doc-{number:03d}" for number in range(50)]
    for wrong in (ds, other):
        with pytest.raises(StateError, match=some.state_dict()["fingerprint"]):
            wrong.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of keys, numbers and where"),
        ({"keys": ["a"], "numbers": [1]}, "one of keys, numbers and where"),
        ({"keys": "doc-001"}, "must be a list"),
        ({"keys": ["doc-001", "nobody"]}, "1 of the keys are not in .*'nobody'"),
        ({"numbers": [100]}, "numbers has 100"),
        ({"numbers": [-1]}, "numbers has -1"),
        ({"numbers": [0.5]}, "whole numbers"),
        ({"where": lambda columns: 1}, "where gave int64"),
        ({"where": lambda columns: np.ones(1, bool)}, "where gave bool"),
    ],
)
def test_bad_subsets_are_refused(packed: Path, options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ss.StreamingDataset(packed).subset(**options)


def test_eviction_where_a_shard_keeps_nothing(tmp_path: Path) -> None:
    """A shard that another dataset has in the cache, and of which the subset keeps nothing."""
    rows = ({"id": str(n), "text": random.Random(n).randbytes(2000).hex()} for n in range(300))
    url = pack_rows(tmp_path, rows, shard_size="64KiB", frame_size="16KiB", compression="none")
    options: Any = {
        "shuffle": ss.Shuffle(lanes=4, scope="lane"),
        "cache": ss.Cache(tmp_path / "cache", disk="256KiB", ram="200KiB", always=True),
    }
    assert len(list(ss.StreamingDataset(url, **options))) == 300
    some = ss.StreamingDataset(url, **options).subset(numbers=range(100, 200))
    for _ in range(2):
        assert sorted(int(sample["__key__"]) for sample in some) == list(range(100, 200))
