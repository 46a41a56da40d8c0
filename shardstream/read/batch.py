"""Samples to batches: one tensor per field where the shapes agree, else a list."""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    import torch
except ImportError:  # numpy arrays then take the place of tensors
    torch = None  # type: ignore[assignment,unused-ignore]

__all__ = ["collate", "flags", "tensor"]


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A dict of field -> values of all samples.

    Numbers and arrays of one shape and dtype become a torch tensor (a numpy array without torch)
    whose first dimension is the sample; anything else a list, with None where a sample lacks the
    field.
    """
    names = dict.fromkeys(name for sample in samples for name in sample)
    return {name: _column([sample.get(name) for sample in samples]) for name in names}


def flags(values: list[bool]) -> Any:
    """A bool tensor [B]."""
    return tensor(np.array(values, np.bool_))


def _column(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, (bool, int, float)):
        kind: type = type(first)
        if not all(type(value) is kind for value in values):
            return values
        array = np.asarray(values)
        # Integers beyond 64 bits make an array of objects, or of unsigned or real numbers.
        exact = {bool: np.bool_, int: np.int64, float: np.float64}[kind]
        return tensor(array) if array.dtype == exact else values
    if isinstance(first, (np.ndarray, np.generic)):
        kind, shape, dtype = type(first), first.shape, first.dtype
        same = all(
            isinstance(value, (np.ndarray, np.generic)) and value.shape == shape and value.dtype == dtype
            for value in values
        )
        return tensor(np.stack(values)) if same and dtype.kind in "biufc" else values
    if torch is not None and isinstance(first, torch.Tensor):
        same = all(
            isinstance(value, torch.Tensor) and value.shape == first.shape and value.dtype == first.dtype
            for value in values
        )
        return torch.stack(values) if same else values
    return values


def tensor(array: Any) -> Any:
    """A torch tensor over the same memory; the array itself where torch is missing or lacks the dtype."""
    if torch is None:
        return array
    try:
        return torch.from_numpy(array)
    except TypeError:  # a dtype that torch lacks, or bytes in the other order
        return array
