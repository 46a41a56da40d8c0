"""Batches: ragged fields, and the samples in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shardstream.errors import OptionError
from shardstream.read.batch import Batch, Ragged, collate
from shardstream.read.device import check_device, moved, pinned


@given(st.lists(st.none() | st.binary(max_size=20), max_size=8))
def test_ragged_gives_back_what_was_gathered(values: list[bytes | None]) -> None:
    ragged = Ragged.gather([None if value is None else memoryview(value) for value in values])
    assert list(ragged) == values
    assert [ragged[number] for number in range(len(ragged))] == values
    assert ragged[::2] == values[::2]
    assert ragged == values
    assert ragged.data.numpy().tobytes() == b"".join(value or b"" for value in values)
    assert ragged.offsets.tolist()[-1] == sum(len(value or b"") for value in values)


def test_ragged_has_ends_and_views() -> None:
    ragged = Ragged.gather([memoryview(b"ab"), None, memoryview(b"")])
    assert ragged[-1] == b""
    assert ragged.view(1) is None
    view = ragged.view(0)
    assert view is not None
    view[0] = ord("x")
    assert ragged[0] == b"xb"
    with pytest.raises(IndexError):
        ragged[3]


def test_a_batch_gives_its_samples() -> None:
    samples = [{"__key__": "a", "n": 1, "t": "x"}, {"__key__": "b", "n": 2}]
    batch = collate(samples)
    assert isinstance(batch, Batch)
    assert batch["n"].dtype == torch.int64
    assert batch.size == 2
    assert list(batch.samples()) == samples


def test_moving_reaches_every_tensor() -> None:
    batch = Batch(a=torch.ones(2), b=Ragged.gather([memoryview(b"ab")]), c=[torch.zeros(1), "x"], d=("y",))
    there = next(moved(iter([batch]), check_device(pin=False, device="meta")))
    assert type(there) is Batch
    assert there["a"].device.type == there["b"].data.device.type == there["c"][0].device.type == "meta"
    assert there["c"][1:] + list(there["d"]) == ["x", "y"]
    with pytest.raises(OptionError, match="nonsense"):
        check_device(pin=False, device="nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so that pinning works")
def test_pinning_without_a_gpu_is_refused() -> None:
    with pytest.raises(OptionError, match="pin=True"):
        check_device(pin=True, device=None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_arrive_whole_on_the_gpu() -> None:
    batches = [Batch(a=torch.full((1 << 20,), number)) for number in range(20)]
    device = check_device(pin=True, device="cuda")
    arrived = list(moved(map(pinned, batches), device))
    assert [batch["a"].sum().item() >> 20 for batch in arrived] == list(range(20))


def test_wide_integers_stay_a_list() -> None:
    assert collate([{"n": 2**70}, {"n": 1}])["n"] == [2**70, 1]
    assert np.asarray(collate([{"n": True}])["n"]).dtype == np.bool_
