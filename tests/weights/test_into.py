"""Weights into models: their own memory, every layout and name, strict as torch is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model

import shardstream as ss
from shardstream.errors import CorruptionError, OptionError, StateError
from shardstream.weights.check import verify_weights
from tests.weights.models import same


class Model(torch.nn.Module):
    """Tied weights, buffers of both kinds, a convolution, an empty parameter and a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(100, 16)
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm1d(16)
        self.head = torch.nn.Linear(16, 100, bias=False)
        self.head.weight = self.embed.weight
        self.scale = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.nothing = torch.nn.Parameter(torch.empty(0, 3))
        self.register_buffer("kept", torch.arange(5))
        self.register_buffer("made", torch.zeros(2), persistent=False)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(3)
    return Model()


@pytest.fixture
def folder(tmp_path: Path, model: Model) -> Path:
    save_model(model, str(tmp_path / "model.safetensors"))  # one name of the tied ones
    return tmp_path


def test_real_parameters_keep_their_memory(folder: Path, model: Model) -> None:
    other = Model()
    places = {name: each.data_ptr() for name, each in other.state_dict().items()}
    assert ss.load_into(other, folder) == ([], [])
    assert same(other.state_dict(), model.state_dict())
    assert {name: each.data_ptr() for name, each in other.state_dict().items()} == places
    assert not other.scale.requires_grad


def test_meta_parameters_get_memory_and_stay_tied(
    folder: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.device("meta"):
        other = Model()
    other.embed.weight.tag = "mine"  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        ss.load_into(other, folder)
    assert same(other.state_dict(), model.state_dict())
    assert other.head.weight is other.embed.weight
    assert other.embed.weight.tag == "mine"  # type: ignore[attr-defined]
    assert not other.scale.requires_grad
    assert other.embed.weight.requires_grad
    assert "stay on the meta device: made" in caplog.text


@pytest.mark.parametrize("recorded", [False, True])
def test_other_dtypes_and_layouts(folder: Path, model: Model, recorded: bool) -> None:
    if recorded:
        verify_weights(str(folder), record=True)
    other = Model().to(torch.bfloat16)
    ss.load_into(other, folder)
    assert same(other.state_dict(), Model.state_dict(model.to(torch.bfloat16)))
    save_file({"weight": torch.arange(6.0).reshape(2, 3)}, folder / "t.safetensors")
    linear = torch.nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.zeros(3, 2).t()  # transposed in memory
    ss.load_into(linear, folder / "t.safetensors")
    assert torch.equal(linear.weight, torch.arange(6.0).reshape(2, 3))
    pictures = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    save_file(
        {name: each.float() for name, each in model.conv.state_dict().items()}, folder / "c.safetensors"
    )
    ss.load_into(pictures, folder / "c.safetensors")
    assert torch.equal(pictures.weight, model.conv.weight.float())


def test_strict_is_as_in_torch(folder: Path, tmp_path: Path) -> None:
    state = Model().state_dict()
    del state["conv.bias"], state["head.weight"]
    save_file(state | {"more": torch.ones(1)}, tmp_path / "other.safetensors")
    other = Model()
    before = {name: each.clone() for name, each in other.state_dict().items()}
    with pytest.raises(
        StateError, match=r"not here, but in the model: 'conv.bias'; here, .*: 'more'; strict=False"
    ):
        ss.load_into(other, tmp_path / "other.safetensors")
    assert same(other.state_dict(), before)
    expected = Model().load_state_dict(
        state | {"more": torch.ones(1), "head.weight": torch.ones(100, 16)}, strict=False
    )
    assert ss.load_into(other, tmp_path / "other.safetensors", strict=False) == tuple(expected)
    assert torch.equal(other.conv.bias, before["conv.bias"])
    assert torch.equal(other.conv.weight, state["conv.weight"])


def test_another_shape_is_always_an_error(folder: Path) -> None:
    other = Model()
    other.scale = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(StateError, match=r"'scale' has shape \[\] here and \[2\] in the model"):
        ss.load_into(other, folder, strict=False)


def test_an_error_leaves_a_meta_model_as_it_was(folder: Path) -> None:
    verify_weights(str(folder), record=True)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    with torch.device("meta"):
        other = Model()
    with pytest.raises(CorruptionError, match="damaged"):
        ss.load_into(other, folder)
    assert all(each.is_meta for each in other.parameters())


def test_a_dtype_that_no_torch_has(tmp_path: Path) -> None:
    text = b'{"weight": {"dtype": "F6_E2M3", "shape": [2, 2], "data_offsets": [0, 3]}}'
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"abc")
    with pytest.raises((OptionError, CorruptionError)):
        ss.load_into(torch.nn.Linear(2, 2, bias=False), tmp_path)


class Renamed(torch.nn.Module):
    """A module with another name when it is saved, and one that loads old names, too."""

    def __init__(self, computed: bool = False) -> None:
        super().__init__()
        self.wrapped = torch.nn.Linear(3, 2)
        self.norm = torch.nn.LayerNorm(3)
        self.register_state_dict_post_hook(self._save)
        self.register_load_state_dict_pre_hook(self._load)
        self.norm.register_load_state_dict_pre_hook(self._load_norm)
        self.computed = computed

    @staticmethod
    def _save(module: Any, state: dict[str, Any], prefix: str, meta: Any) -> None:
        for name in [name for name in state if ".wrapped." in f".{name}"]:
            state[name.replace("wrapped.", "")] = state.pop(name)

    @staticmethod
    def _load(module: Any, state: dict[str, Any], prefix: str, *more: Any) -> None:
        for name in ("weight", "bias"):
            state[f"{prefix}wrapped.{name}"] = state.pop(prefix + name)
        if module.computed:
            state[f"{prefix}wrapped.bias"] = state[f"{prefix}wrapped.bias"] * 2

    @staticmethod
    def _load_norm(module: Any, state: dict[str, Any], prefix: str, *more: Any) -> None:
        if f"{prefix}gamma" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}gamma")


@pytest.mark.parametrize("meta", [False, True])
def test_hooks_that_rename_are_followed(tmp_path: Path, meta: bool) -> None:
    """As by load_state_dict of torch, with the same file."""
    saved = {f"0.{name}": torch.randn_like(each) for name, each in Renamed().state_dict().items()}
    saved["0.norm.gamma"] = saved.pop("0.norm.weight")
    assert "0.weight" in saved
    save_file(saved, tmp_path / "model.safetensors")
    expected = torch.nn.Sequential(Renamed())
    expected.load_state_dict(saved)
    with torch.device("meta" if meta else "cpu"):
        model = torch.nn.Sequential(Renamed())
    assert ss.load_into(model, tmp_path) == ([], [])
    assert same(model.state_dict(), expected.state_dict())
    save_file({**saved, "0.more": torch.ones(1)}, tmp_path / "more.safetensors")
    with pytest.raises(StateError, match=r"here, but not in the model: '0\.more'"):
        ss.load_into(model, tmp_path / "more.safetensors")
    with pytest.raises(OptionError, match=r"0\.wrapped\.bias: a hook .* computes it"):
        ss.load_into(torch.nn.Sequential(Renamed(computed=True)), tmp_path)


class Hooked(torch.nn.Module):
    """Its hook does what it is told to, at its place."""

    def __init__(self, hook: Any, tied: bool = False) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, 2)
        if tied:
            self.second = self.first
        self.first.register_load_state_dict_pre_hook(lambda _, state, prefix, *more: hook(state, prefix))


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_hooks_that_drop_and_add_are_followed(tmp_path: Path, meta: bool, tied: bool) -> None:
    def hook(state: dict[str, Any], prefix: str) -> None:
        state.pop(prefix + "inv_freq", None)
        state.setdefault(prefix + "bias", torch.tensor([3.0, 4.0]))
        if prefix + "gamma" in state:
            state[prefix + "weight"] = state.pop(prefix + "gamma")

    last = "second" if tied else "first"
    saved = {f"{last}.inv_freq": torch.ones(3), f"{last}.gamma": torch.randn(2, 2)}
    save_file(saved, tmp_path / "model.safetensors")
    expected = Hooked(hook, tied)
    assert expected.load_state_dict(saved, strict=not tied).unexpected_keys == []
    with torch.device("meta" if meta else "cpu"):
        model = Hooked(hook, tied)
    assert ss.load_into(model, tmp_path) == ([], [])
    assert same(model.state_dict(), expected.state_dict())

    # Under another prefix nobody drops it; what nobody has is named, and a shape that does not fit.
    save_file({**saved, "inv_freq": torch.ones(3)}, tmp_path / "more.safetensors")
    with pytest.raises(StateError, match=r"here, but not in the model: 'inv_freq'"):
        ss.load_into(Hooked(hook), tmp_path / "more.safetensors")
    with pytest.raises(StateError, match=r"a hook gives it shape \[5\], not \[2\]"):
        ss.load_into(
            Hooked(lambda state, prefix: state.update({prefix + "bias": torch.zeros(5)})), tmp_path, False
        )


@pytest.mark.parametrize("look", [torch.Tensor.item, torch.Tensor.numpy, torch.Tensor.tolist, bool])
def test_hooks_that_look_at_values_are_refused(tmp_path: Path, look: Any) -> None:
    save_file({"first.weight": torch.ones(2, 2), "first.bias": torch.ones(1)}, tmp_path / "model.safetensors")
    model = Hooked(lambda state, prefix: look(state[prefix + "bias"]))
    with pytest.raises(OptionError, match=r"first: a hook fails.* use model\.load_state_dict\("):
        ss.load_into(model, tmp_path)
