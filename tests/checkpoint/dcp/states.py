"""States of odd tensors and objects, and how they are compared: what the tests of DCP share."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["assert_equal", "emptied", "odd_state", "tensors_of"]


def odd_state(seed: int = 0) -> dict[str, Any]:
    """Every kind of tensor and object that a checkpoint of torch can hold."""
    numbers = torch.Generator().manual_seed(seed)

    def some(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=numbers)

    return {
        "weight": some(300, 1000),
        "large": some(1000, 700),
        "transposed": some(30, 40).t(),
        "strided": some(40, 40)[::2, ::3],
        "bfloat16": some(7, 3).bfloat16(),
        "float8": some(16).to(torch.float8_e4m3fn),
        "uint16": torch.arange(5).to(torch.uint16),
        "bool": some(9) > 0,
        "complex": torch.complex(some(4), some(4)),
        "scalar": torch.tensor(3 + seed),
        "empty": torch.zeros(0, 3),
        "nested": {
            "lr": 0.1 + seed, "betas": (0.9, 0.999), "names": ["a", "ä\n", ""], "none": None, "big": 2**70,
            "inf": float("inf"), "list": [some(3), "x", {"deep": some(2, 2)}], "bytes": b"\x00\xff",
            "empty": {},
        },
    }  # fmt: skip


def emptied(value: Any) -> Any:
    """The same structure without what it holds, to load into."""
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, dict):
        return {key: emptied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [emptied(each) for each in value]
    return None


def assert_equal(found: Any, expected: Any, name: str = "state") -> None:
    """Equal in types, shapes, dtypes and bits."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), name
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        assert _bits(found) == _bits(expected), name
    elif isinstance(expected, dict):
        assert type(found) is dict, name
        assert found.keys() == expected.keys(), name
        for key, each in expected.items():
            assert_equal(found[key], each, f"{name}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected), name
        assert len(found) == len(expected), name
        for number, each in enumerate(expected):
            assert_equal(found[number], each, f"{name}.{number}")
    else:
        assert type(found) is type(expected), name
        assert found == expected, name


def tensors_of(value: Any) -> list[torch.Tensor]:
    """All tensors of a state."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for each in value.values() for tensor in tensors_of(each)]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors_of(each)]
    return []


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
