"""Batches: one tensor per field where the shapes agree, else one buffer with offsets, or a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

try:
    import torch
except ImportError:  # numpy arrays then take the place of tensors
    torch = None  # type: ignore[assignment,unused-ignore]

__all__ = ["Batch", "Ragged", "collate", "column", "flags", "tensor"]


class Ragged(Sequence["bytes | None"]):
    """The bytes of one field of B samples, which differ in length, in one buffer.

    data: uint8 [total], a tensor, or an array without torch.  offsets: int64 array [B + 1]; sample i is
    data[offsets[i] : offsets[i + 1]].  missing: bool array [B], True where a sample lacks the field, or None.
    An item is the bytes of a sample, copied, or None where it lacks the field.
    """

    def __init__(self, data: Any, offsets: NDArray[np.int64], missing: NDArray[np.bool_] | None) -> None:
        self.data, self.offsets, self.missing = data, offsets, missing

    @classmethod
    def gather(cls, views: Sequence[memoryview | None]) -> Ragged:
        """A copy of `views`, one behind the other."""
        present, missing = [view for view in views if view is not None], None
        if len(present) < len(views):
            missing = np.array([view is None for view in views], np.bool_)
        sizes = (0 if view is None else len(view) for view in views)
        offsets = np.array([0, *accumulate(sizes)], np.int64)
        # A bytearray, since a tensor must be over memory that may be written to.
        return cls(tensor(np.frombuffer(bytearray().join(present), np.uint8)), offsets, missing)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes | None]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes | None] | None:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        view = self.view(index)
        return None if view is None else bytes(view)

    def view(self, index: int) -> memoryview | None:
        """The bytes of one sample where they lie in `data`, None where it lacks the field."""
        index = range(len(self))[index]
        if self.missing is not None and self.missing[index]:
            return None
        begin, end = self.offsets[index : index + 2].tolist()
        return np.asarray(self.data[begin:end]).data

    def __iter__(self) -> Iterator[bytes | None]:
        memory = np.asarray(self.data).data
        gaps = [False] * len(self) if self.missing is None else self.missing.tolist()
        for gap, (begin, end) in zip(gaps, pairwise(self.offsets.tolist()), strict=True):
            yield None if gap else bytes(memory[begin:end])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Ragged, list)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ragged({len(self)} items, {int(self.offsets[-1])} bytes)"

    def pin_memory(self) -> Ragged:
        """The same with `data` in pinned memory, as torch's DataLoader asks for it."""
        return Ragged(self.data.pin_memory(), self.offsets, self.missing)


class Batch(dict[str, Any]):
    """A dict of field -> values of B samples: a tensor [B, ...], a `Ragged`, or a list.

    `batch["__key__"]` is a list of str. A sample that lacks a field has None there.
    """

    @property
    def size(self) -> int:
        """B, the number of samples."""
        return len(next(iter(self.values()), ()))

    def samples(self) -> Iterator[dict[str, Any]]:
        """The samples one by one, as dicts without the fields that they lack."""
        for number in range(self.size):
            row = {name: values[number] for name, values in self.items()}
            yield {name: value for name, value in row.items() if value is not None}


def collate(samples: list[dict[str, Any]]) -> Batch:
    """A batch of samples: `column` of the values of each field, None where a sample lacks it."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    return Batch({name: column([sample.get(name) for sample in samples]) for name in names})


def flags(values: list[bool]) -> Any:
    """A bool tensor [B]."""
    return tensor(np.array(values, np.bool_))


def column(values: list[Any]) -> Any:
    """The values of one field as a torch tensor (a numpy array without torch) whose first dimension is
    the sample, where they are numbers, or arrays of one shape and dtype; else the list itself.
    """
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
