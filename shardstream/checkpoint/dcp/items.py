"""What one rank writes for a plan of torch: items of files, and the results that go back to torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from shardstream.checkpoint.dcp.manifest import OBJECT
from shardstream.checkpoint.dcp.objects import resolve_object
from shardstream.checkpoint.layout import Item
from shardstream.checkpoint.manifest import Receipt
from shardstream.checkpoint.tensors import bytes_of, copier, dtype_name
from shardstream.errors import StateError

__all__ = ["Part", "Written"]


@dataclass(frozen=True)
class Written:
    """What a result tells the coordinator. It goes through a pickle of torch.

    values: an object that is JSON, by its name.
    receipt: what the rank has written, with its first result.
    on_disk: whether all of it is on the local disk.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    receipt: Receipt | None = None
    on_disk: bool = False


class Part:
    """The items of a plan.

    Args:
        plan: What this rank writes.
        planner: Has the tensors and objects.
        limit: Bytes of a file.
    """

    def __init__(self, plan: SavePlan, planner: SavePlanner, limit: int) -> None:
        self._plan, self._planner, self._limit = plan, planner, limit
        self.addresses: list[int] = []  # of tensors in memory of the CPU
        self._values: dict[str, Any] = {}

    def items(self) -> list[Item]:
        """What goes into files. Tensors are resolved when they are copied, one after another."""
        found: list[Item] = []
        for item in self._plan.items:
            if item.type == WriteItemType.BYTE_IO:
                found += self._object(item)
            else:
                found += self._tensor(item)
        return found

    def results(self, receipt: Receipt, on_disk: bool) -> list[WriteResult]:
        """What torch gathers from all ranks."""
        results = []
        for item in self._plan.items:
            name = item.index.fqn
            values = {name: self._values[name]} if name in self._values else {}
            size = 0 if item.tensor_data is None else _bytes(item)
            results.append(WriteResult(item.index, size, Written(values)))
        if not results:
            results.append(WriteResult(MetadataIndex(""), 0, Written()))
        told = dataclasses.replace(results[0].storage_data, receipt=receipt, on_disk=on_disk)
        results[0] = dataclasses.replace(results[0], storage_data=told)
        return results

    def _object(self, item: WriteItem) -> Iterator[Item]:
        name = item.index.fqn
        is_json, value, data = resolve_object(self._planner, item)
        if is_json:
            self._values[name] = value
            return

        def copy(start: int, into: memoryview) -> None:
            into[:] = data[start : start + len(into)]

        yield Item(OBJECT + name, "U8", (len(data),), copy, OBJECT + name)

    def _tensor(self, item: WriteItem) -> Iterator[Item]:
        """A part of a tensor, cut along its first dimension if it is larger than a file."""
        assert item.tensor_data is not None
        name, dtype = item.index.fqn, dtype_name(item.tensor_data.properties.dtype, item.index.fqn)
        chunk, whole = item.tensor_data.chunk, tuple(item.tensor_data.size)
        offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        if math.prod(sizes) == 0 and math.prod(whole) > 0:
            return  # a rank with an empty part of a tensor that others have
        copy, memory = self._copier(item), self._memory(item)
        rows = sizes[0] if sizes else 1
        row = _bytes(item) // rows if rows else 0
        step = max(1, (self._limit - (1 << 20)) // row) if row and len(sizes) else max(1, rows)
        for first in range(0, max(1, rows), step):
            count = min(step, rows - first)
            begin = (offsets[0] + first, *offsets[1:]) if sizes else ()
            shape = (count, *sizes[1:]) if sizes else ()
            named = name if shape == whole else f"{name}[{','.join(map(str, begin))}]"
            held = None if memory is None else memory[first * row : (first + count) * row]
            yield Item(named, dtype, shape, _shifted(copy, first * row), name, begin, whole, held)

    def _memory(self, item: WriteItem) -> memoryview | None:
        """The memory of a tensor of the state, which nobody changes meanwhile; None if it must be copied."""
        planner = self._planner
        if not isinstance(planner, DefaultSavePlanner) or _overrides(planner):
            return None  # it may make a tensor for each item, all of which would be held at once
        return bytes_of(self._resolved(item))

    def _copier(self, item: WriteItem) -> Callable[[int, memoryview], None]:
        """Resolves the tensor at its first byte, and lets it go after its last one."""
        total = _bytes(item)
        kept: list[Callable[[int, memoryview], None]] = []

        def copy(start: int, into: memoryview) -> None:
            if not kept:
                kept.append(copier(self._resolved(item)))
            kept[0](start, into)
            if start + len(into) == total:
                kept.clear()

        return copy

    def _resolved(self, item: WriteItem) -> torch.Tensor:
        tensor = self._planner.resolve_data(item)
        assert item.tensor_data is not None
        expected = item.tensor_data.properties.dtype, item.tensor_data.chunk.sizes
        if not isinstance(tensor, torch.Tensor) or (tensor.dtype, tensor.shape) != expected:
            found = (tensor.dtype, tuple(tensor.shape)) if isinstance(tensor, torch.Tensor) else type(tensor)
            raise StateError(
                f"{item.index.fqn}: the planner gives {found}, and its plan says {expected[0]} "
                f"{tuple(expected[1])}"
            )
        if tensor.device.type == "cpu" and tensor.nbytes:
            self.addresses.append(tensor.data_ptr())
        return tensor.detach()


def _overrides(planner: DefaultSavePlanner) -> bool:
    kind, names = type(planner), ("resolve_data", "lookup_object", "transform_object")
    return any(getattr(kind, name) is not getattr(DefaultSavePlanner, name) for name in names)


def _shifted(copy: Callable[[int, memoryview], None], by: int) -> Callable[[int, memoryview], None]:
    return copy if not by else lambda start, into: copy(by + start, into)


def _bytes(item: WriteItem) -> int:
    assert item.tensor_data is not None
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
