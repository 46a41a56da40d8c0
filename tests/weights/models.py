"""Models that the tests of weights share: tensors of every kind, and how to compare them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

__all__ = ["of_all_kinds", "same", "save_sharded"]


def of_all_kinds(large: int = 3000) -> dict[str, torch.Tensor]:
    """Every dtype that safetensors and torch share; a single number, nothing, more than a block."""
    torch.manual_seed(1)
    state = {
        "layer.weight": torch.randn(large, 1025),  # 12 MB: two blocks
        "half": torch.randn(33, 65).half(),
        "brain": torch.randn(129, 7).bfloat16(),
        "double": torch.randn(5, 3, 2, dtype=torch.float64), "number": torch.tensor(3.5),
        "one": torch.tensor([7], dtype=torch.int64), "nothing": torch.empty(0, 4),
        "bool": torch.rand(13) > 0.5,
        "fp8": torch.randn(33, 5).to(torch.float8_e4m3fn),
        "fp8_e5m2": torch.randn(7).to(torch.float8_e5m2),
        "bytes": torch.arange(255, dtype=torch.uint8),
        "int8": torch.arange(-5, 6, dtype=torch.int8),
        "int16": torch.arange(9, dtype=torch.int16), "int32": torch.arange(9, dtype=torch.int32),
        "complex": torch.randn(3, dtype=torch.complex64), "ключ ✓ \"q\"": torch.arange(3),
    }  # fmt: skip
    for name in ("uint16", "uint32", "uint64"):
        state[name] = torch.arange(5).to(getattr(torch, name))
    return state


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    """Whether names, dtypes, shapes and all bits agree."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype
        and found[name].shape == tensor.shape
        and raw(found[name]) == raw(tensor)
        for name, tensor in expected.items()
    )


def save_sharded(state: dict[str, torch.Tensor], folder: Path, shards: int = 3) -> None:
    """Several files and their index, as the Hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_file(folder / weight_map[names[0]])
