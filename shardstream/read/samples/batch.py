"""Batches: one tensor per field where the shapes agree, else one buffer with offsets, or a list."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from shardstream.read.buffers import BufferPool
from shardstream.read.samples import pytrees

try:
    import torch
except ImportError:  # numpy arrays then take the place of tensors
    torch = None  # type: ignore[assignment,unused-ignore]

__all__ = ["Batch", "Ragged", "collate", "column", "flags", "tensor", "unmarked"]

_BOOLS = (bool, np.bool_)
_COMPLEX = (complex, np.complexfloating)
_NUMBERS = (*_BOOLS, int, np.integer, float, np.floating, *_COMPLEX)


_FLAGS = 1 << 10  # flags that are made at once
_REUSED = 256 << 10  # bytes from which on it costs more to get new memory than to fill it
_LONG = 1 << 20  # bytes from which on it costs less to let go of the GIL than to hold it


def _joined(views: Sequence[memoryview], size: int, pool: BufferPool | None) -> NDArray[np.uint8]:
    """A copy of the bytes of `views`, `size` bytes in all, which may be written to."""
    if size < _REUSED or pool is None:
        return np.frombuffer(bytearray().join(views), np.uint8)
    found = pool.lease(size)
    memory, at = found.data, 0
    for view in views:
        end = at + len(view)
        if len(view) < _LONG:
            memory[at:end] = view
        else:
            found[at:end] = view  # numpy lets other threads run meanwhile
        at = end
    return found


class Ragged:
    """The bytes of one field of B samples, which differ in length, in one buffer.

    `ragged[i]` is a copy of the bytes of sample i, or None if the sample lacks the field. There are slices,
    too.

    It is not a `Sequence`, because torch and others rebuild sequences item by item when they move a batch to
    a device. It is a pytree of torch, with the one tensor `data`.

    Args:
        data: uint8 [total], a tensor; without torch an array. Sample i is data[offsets[i] : offsets[i + 1]].
        offsets: int64 array [B + 1].
        missing: bool array [B], True if the sample lacks the field. None if no sample lacks it.
    """

    def __init__(self, data: Any, offsets: NDArray[np.int64], missing: NDArray[np.bool_] | None) -> None:
        self.data, self.offsets, self.missing = data, offsets, missing
        self._host: tuple[Any, memoryview] | None = None
        self._bounds: list[int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_host": None, "_bounds": None}

    @classmethod
    def gather(cls, views: Sequence[memoryview | None], pool: BufferPool | None = None) -> Ragged:
        """A copy of the fields of B samples.

        Args:
            views: The bytes of each sample, or None if it lacks the field.
            pool: Where large buffers come from. None: from the system.
        """
        present, missing = [view for view in views if view is not None], None
        if len(present) < len(views):
            missing = np.array([view is None for view in views], np.bool_)
        sizes = (0 if view is None else len(view) for view in views)
        offsets = np.array([0, *accumulate(sizes)], np.int64)
        return cls(tensor(_joined(present, int(offsets[-1]), pool)), offsets, missing)

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
        """The bytes of one sample without a copy, or None if it lacks the field.

        If `data` is not in the memory of the CPU, the bytes are copied.
        """
        index = operator.index(index)  # of a tensor, which `%=` would write to
        bounds = self._bounds
        if bounds is None:
            bounds = self._bounds = self.offsets.tolist()
        count = len(bounds) - 1
        if not -count <= index < count:
            raise IndexError(f"item {index} of {count}")
        index %= count
        if self.missing is not None and self.missing[index]:
            return None
        begin, end = bounds[index], bounds[index + 1]
        if not isinstance(self.data, np.ndarray) and self.data.device.type != "cpu":
            return _host(self.data[begin:end])
        found = self._host
        if found is None or found[0] is not self.data:
            # Looked up once: to slice a tensor for each sample takes longer than to read 40 KB.
            found = self._host = self.data, _host(self.data)
        return found[1][begin:end]

    def views(self) -> list[memoryview | None]:
        """The bytes of all samples as `view` gives them."""
        memory, bounds = _host(self.data), self.offsets.tolist()
        found: list[memoryview | None] = [memory[begin:end] for begin, end in pairwise(bounds)]
        for row in [] if self.missing is None else np.flatnonzero(self.missing).tolist():
            found[row] = None
        return found

    def __iter__(self) -> Iterator[bytes | None]:
        memory = _host(self.data)
        gaps = [False] * len(self) if self.missing is None else self.missing.tolist()
        for gap, (begin, end) in zip(gaps, pairwise(self.offsets.tolist()), strict=True):
            yield None if gap else bytes(memory[begin:end])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Ragged, list)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ragged({len(self)} items, {int(self.offsets[-1])} bytes)"

    def pin_memory(self) -> Ragged:
        """A copy with `data` in pinned memory. The DataLoader of torch calls this."""
        return Ragged(self.data.pin_memory(), self.offsets, self.missing)

    def to(self, device: Any, non_blocking: bool = False) -> Ragged:
        """The same with `data` on a torch device. Lightning and Accelerate call this.

        Args:
            device: A torch device or its name.
            non_blocking: Whether to return before the copy is done. Only from pinned memory.
        """
        return Ragged(self.data.to(device, non_blocking=non_blocking), self.offsets, self.missing)


class Batch(dict[str, Any]):
    """A dict from each field to its values in B samples: a tensor [B, ...], a `Ragged`, or a list.

    `batch["__key__"]` is a list of str. If a sample lacks a field, its value is None.
    A batch is a pytree of torch, as a dict is.

    Attributes:
        aliases: Other names of fields, which work for one more version and give a DeprecationWarning. They
            are not among the keys.
    """

    aliases: Mapping[str, str] = MappingProxyType({})

    def __missing__(self, name: str) -> Any:
        if name not in self.aliases:
            raise KeyError(name)
        now = self.aliases[name]
        warnings.warn(f"batch[{name!r}] is batch[{now!r}] from the next version on", DeprecationWarning, 2)
        return self[now]

    @property
    def size(self) -> int:
        """B, the number of samples."""
        return len(next(iter(self.values()), ()))

    def samples(self) -> Iterator[dict[str, Any]]:
        """The samples one by one, each a dict without the fields that the sample lacks."""
        for number in range(self.size):
            row = {name: values[number] for name, values in self.items()}
            yield {name: value for name, value in row.items() if value is not None}


def _host(data: Any) -> memoryview:
    """The memory of a tensor or array, copied if it is on another device."""
    return np.asarray(data if isinstance(data, np.ndarray) else data.cpu()).data


def _ragged_layout(ragged: Ragged) -> tuple[list[Any], Any]:
    # Tuples, since torch compares and hashes the structures of trees, and writes them as JSON.
    missing = None if ragged.missing is None else tuple(ragged.missing.tolist())
    return [ragged.data], (tuple(ragged.offsets.tolist()), missing)


def _ragged_of(children: Iterable[Any], layout: Any) -> Ragged:
    offsets, missing = layout
    (data,) = children
    return Ragged(data, np.array(offsets, np.int64), None if missing is None else np.array(missing, np.bool_))


def _batch_of(values: Iterable[Any], layout: Any) -> Batch:
    names, aliases = layout
    batch = Batch(zip(names, values, strict=True))
    if aliases:
        batch.aliases = dict(aliases)
    return batch


if torch is not None:
    pytrees.register(Ragged, _ragged_layout, _ragged_of, lambda tree, _: [tree.GetAttrKey("data")])
    pytrees.register(
        Batch,
        lambda batch: (list(batch.values()), (tuple(batch), tuple(batch.aliases.items()))),
        _batch_of,
        lambda tree, batch: [tree.MappingKey(name) for name in batch],
    )


def collate(samples: list[dict[str, Any]]) -> Batch:
    """A batch of samples.

    Args:
        samples: Dicts from field to value. A sample may lack a field; its value is then None.

    Returns:
        For each field the `column` of its values.
    """
    names = dict.fromkeys(name for sample in samples for name in sample)
    return Batch({name: column([sample.get(name) for sample in samples]) for name in names})


def flags(values: list[bool]) -> Any:
    """A bool tensor [B]."""
    return tensor(np.array(values, np.bool_))


def unmarked(size: int) -> Iterator[Any]:
    """Bool tensors [size] of False, without end. Each has memory of its own.

    Many are made with one call, since a call for each would be felt in small batches.
    """
    while True:
        yield from map(tensor, np.zeros((max(1, _FLAGS // size), size), np.bool_))


def column(values: list[Any]) -> Any:
    """The values of one field as a tensor if possible, else the list itself.

    Numbers of Python, numpy or an enum become a tensor [B]: complex128 if one number is complex, else float64
    if one is a float, else int64; bool if all are bools. Integers beyond 64 bits stay a list. Arrays of one
    shape and dtype are stacked to [B, ...], and so are tensors. Anything else stays a list.

    Args:
        values: The value of each of B samples.

    Returns:
        A torch tensor (without torch a numpy array), or `values`.
    """
    first = values[0]
    if isinstance(first, _NUMBERS):
        kinds = set(map(type, values))
        numbers = all(issubclass(kind, _NUMBERS) and not issubclass(kind, np.timedelta64) for kind in kinds)
        return _numbers(values, kinds) if numbers else values
    if isinstance(first, np.ndarray):
        stacked = first.dtype.kind in "biufc" and all(
            isinstance(value, np.ndarray)
            and not isinstance(value, np.ma.MaskedArray)
            and value.shape == first.shape
            and value.dtype == first.dtype
            for value in values
        )
        return tensor(np.stack(values)) if stacked else values
    if torch is not None and isinstance(first, torch.Tensor):
        same = all(
            isinstance(value, torch.Tensor)
            and value.shape == first.shape
            and value.dtype == first.dtype
            and value.device == first.device
            for value in values
        )
        return torch.stack(values) if same else values
    return values


def _numbers(values: list[Any], kinds: set[type]) -> Any:
    """The tensor of some numbers; the list itself if an integer does not fit into 64 bits."""
    if kinds == {float}:
        return tensor(np.array(values, np.float64))
    if all(issubclass(kind, _BOOLS) for kind in kinds):
        return tensor(np.array(values, np.bool_))
    whole = values
    if kinds != {int}:
        # Convert to int first: numpy would make a negative number of an unsigned one that is too large.
        whole = [int(value) for value in values if isinstance(value, (int, np.integer))]
    try:
        exact = np.array(whole, np.int64)
    except OverflowError:
        return values
    if any(issubclass(kind, _COMPLEX) for kind in kinds):
        return tensor(np.array([complex(value) for value in values], np.complex128))
    if any(issubclass(kind, (float, np.floating)) for kind in kinds):
        return tensor(np.array([float(value) for value in values], np.float64))
    return tensor(exact if len(exact) == len(values) else np.array(list(map(int, values)), np.int64))


def tensor(array: Any) -> Any:
    """A torch tensor with the same memory; the array itself if torch is missing or lacks the dtype."""
    if torch is None:
        return array
    try:
        return torch.from_numpy(array)
    except TypeError:  # a dtype that torch lacks, or bytes in the other order
        return array
