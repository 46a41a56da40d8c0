"""Replay: the first batches of any loader, again and again, and nothing else of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from tests.corpora import pack_rows
from tests.watch import settled


@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 30))
def test_it_repeats_the_first_batches_in_their_order(there: int, wanted: int, taken: int) -> None:
    replay = ss.Replay([{"n": number} for number in range(there)], wanted)
    found = [batch["n"] for batch in itertools.islice(replay, taken)]
    kept = min(there, wanted)
    assert found == [number % kept for number in range(taken)]
    assert replay.batches == kept
    with pytest.raises(TypeError, match="never ends"):
        len(replay)


def test_an_epoch_of_a_given_length_and_the_next_one() -> None:
    replay = ss.Replay(iter([(1, [2]), (3, [4])]), 50, epoch=5)
    assert len(replay) == 5
    assert list(replay) == [(1, [2]), (3, [4])] * 2 + [(1, [2])]
    assert next(iter(replay)) == (1, [2])


def test_a_batch_that_a_loop_changes_comes_back_as_it_was() -> None:
    replay = ss.Replay([{"a": [1], "b": {"c": 2}}], 1)
    for batch in itertools.islice(replay, 3):
        assert batch == {"a": [1], "b": {"c": 2}}
        batch["a"].append(3)
        batch["b"].clear()
        del batch["a"]


def test_the_threads_and_the_place_of_the_loader(tmp_path: Path) -> None:
    packed = pack_rows(tmp_path, ({"text": str(number) * 400} for number in range(200)), frame_size="4KiB")
    loader = ss.StreamingLoader(ss.StreamingDataset(packed, shuffle=True), 4)
    replay = ss.Replay(loader, 10)
    first = [batch["__key__"] for batch in itertools.islice(replay, 10)]
    assert settled()  # nothing competes with what is measured
    assert [batch["__key__"] for batch in itertools.islice(replay, 25)] == (first * 3)[:25]
    assert 0 < replay.nbytes < 1 << 20
    state = replay.state_dict()
    again = ss.StreamingLoader(ss.StreamingDataset(packed, shuffle=True), 4)
    ss.Replay(again, 3).load_state_dict(state)
    rest = [key for batch in again for key in batch["__key__"]]
    assert len(rest) == 160
    assert not set(rest) & {key for keys in first for key in keys}
    with pytest.raises(ss.StateError, match="taken already"):
        replay.load_state_dict(state)


def test_memory_is_bounded_and_said(caplog: pytest.LogCaptureFixture) -> None:
    def batches() -> Iterator[Any]:
        while True:
            yield {"x": torch.zeros(1 << 18)}  # 1 MiB

    replay = ss.Replay(batches(), 50, memory="3500KiB")
    next(iter(replay))
    assert replay.batches == 3
    assert "they are repeated, not 50" in caplog.text
    # Batches that are views of one buffer take its memory once.
    views = ss.Replay(iter(torch.zeros(1 << 18).split(1 << 13)), 32, memory="2MiB")
    next(iter(views))
    assert views.batches == 32


def test_what_cannot_be_is_refused() -> None:
    for wrong in (3, None):
        with pytest.raises(ss.OptionError, match="iterable"):
            ss.Replay(wrong)  # type: ignore[arg-type]
    with pytest.raises(ss.OptionError, match="batches"):
        ss.Replay([1], 0)
    with pytest.raises(ss.OptionError, match="no batch"):
        next(iter(ss.Replay([], 3)))
    with pytest.raises(ss.StateError, match="no state_dict"):
        ss.Replay([1]).state_dict()

    def broken() -> Iterator[int]:
        yield 1
        raise RuntimeError("the user's")

    replay = ss.Replay(broken(), 3)
    with pytest.raises(RuntimeError, match="the user's"):
        next(iter(replay))
    assert replay.batches == 0
