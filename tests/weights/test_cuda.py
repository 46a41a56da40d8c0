"""Weights on a GPU. These tests need one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import shardstream as ss
from shardstream.weights.check import verify_weights
from tests.weights.models import of_all_kinds, same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA is not available here")


def test_all_bits_arrive(tmp_path: Path) -> None:
    state = of_all_kinds()
    save_file(state, tmp_path / "model.safetensors")
    found = ss.load_weights(tmp_path, device="cuda")
    assert all(each.device.type == "cuda" for each in found.values())
    assert same({name: each.cpu() for name, each in found.items()}, state)
    half = ss.load_weights(tmp_path, names=["layer.weight"], device="cuda", dtype=torch.bfloat16)
    assert torch.equal(half["layer.weight"].cpu(), state["layer.weight"].bfloat16())


def test_into_a_model_on_the_gpu(tmp_path: Path) -> None:
    model = torch.nn.Linear(300, 200)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = torch.nn.Linear(300, 200, device="cuda")
    ss.load_into(other, tmp_path)
    assert torch.equal(other.weight.cpu(), model.weight)


def test_memory_that_queued_work_still_uses_is_not_written_to(tmp_path: Path) -> None:
    """A tensor is freed while work with it is queued: its memory is taken for weights at once."""
    save_file({"weight": torch.zeros(4 << 20)}, tmp_path / "model.safetensors")
    verify_weights(str(tmp_path), record=True)  # with checksums it is our own way, not that of safetensors
    for _ in range(5):
        source = torch.ones(4 << 20, device="cuda")
        torch.cuda._sleep(100_000_000)
        copy = source * 2
        del source
        ss.load_weights(tmp_path, device="cuda")
        assert bool((copy == 2).all())
