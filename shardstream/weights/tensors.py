"""Between the bytes of files and tensors of torch: dtypes, memory, and the way of each piece."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from shardstream.errors import OptionError
from shardstream.slices import Run
from shardstream.weights.digests import BLOCK
from shardstream.weights.header import BITS, TensorInfo
from shardstream.weights.pieces import Piece
from shardstream.weights.slices import Rows, plan_slice

__all__ = ["Buffer", "convertible", "dtype_of", "empty", "memory_of", "pieces_of", "shape_of"]

_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32",
    "U32": "uint32", "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64", "C64": "complex64", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}  # fmt: skip
_CONVERTIBLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def dtype_of(info: TensorInfo, where: str) -> torch.dtype:
    """The dtype of torch; OptionError if this torch has none."""
    found = getattr(torch, _NAMES.get(info.dtype, ""), None)
    if not isinstance(found, torch.dtype):
        raise OptionError(
            f"{where}: tensor {info.name!r} is {info.dtype}, which torch {torch.__version__} has not: "
            "leave it out with names="
        )
    return found


def convertible(dtype: torch.dtype) -> bool:
    """Whether `dtype=` applies: to numbers, not to integers or to fp8 and fp4, whose scales lie elsewhere."""
    return dtype in _CONVERTIBLE


def shape_of(info: TensorInfo) -> tuple[int, ...]:
    """The shape that torch gives it: two elements of 4 bits are one."""
    return (*info.shape[:-1], info.shape[-1] // 2) if BITS[info.dtype] == 4 and info.shape else info.shape


def empty(shape: Sequence[int], dtype: torch.dtype, device: Any = None) -> torch.Tensor:
    """A tensor in fresh memory."""
    return torch.empty(tuple(shape), dtype=dtype, device=device)


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, writable."""
    view: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return view


class Buffer:
    """A bounce buffer: memory of the CPU, in which tensors can be seen.

    Args:
        size: Bytes at least.
        device: The device that its bytes go to; for CUDA the memory is pinned.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.bytes = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.view = memory_of(self.bytes) if size else memoryview(bytearray())

    def tensor(self, place: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Elements in the buffer, flat."""
        return self.bytes[place : place + size].view(dtype)


def pieces_of(
    info: TensorInfo,
    target: torch.Tensor,
    source: torch.dtype,
    offsets: Sequence[int],
    gap: int,
    checked: bool,
) -> tuple[list[Piece], Callable[[], None]]:
    """The pieces that fill a tensor with a slice of one of a file, and what is called at the end.

    Args:
        info: The tensor in the file.
        target: What is filled. Its shape is that of the slice.
        source: The file's dtype.
        offsets: Where the slice begins.
        gap: Bytes that are cheaper to read than to leave out.
        checked: Whether blocks of the file have checksums: then no piece crosses the end of one.
    """
    pieces, end = _pieces_of(info, target, source, offsets, gap, checked)
    if tuple(target.shape) != shape_of(info):
        pieces = [dataclasses.replace(piece, sliced=True) for piece in pieces]
    return pieces, end


def _pieces_of(
    info: TensorInfo,
    target: torch.Tensor,
    source: torch.dtype,
    offsets: Sequence[int],
    gap: int,
    checked: bool,
) -> tuple[list[Piece], Callable[[], None]]:
    item = source.itemsize
    plan = plan_slice(shape_of(info), offsets, target.shape, item, gap)
    if isinstance(plan, Rows):
        return _rows(info, target, source, offsets, plan), _nothing
    straight = target.is_contiguous()
    aligned = not checked or (info.start % item == 0)
    direct = straight and target.dtype == source and target.device.type == "cpu"
    if not direct and not (straight and aligned):
        raw = empty(target.shape, source)
        return _direct(info, raw, plan, item), lambda: _copy(target, raw)
    return (_direct(info, target, plan, item) if direct else _bounced(info, target, source, plan)), _nothing


def _nothing() -> None:
    """Nothing is left to do."""


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


def _direct(info: TensorInfo, target: torch.Tensor, runs: Sequence[Run], item: int) -> list[Piece]:
    """Pieces that go straight to the tensor's memory, cut at the blocks of the file."""
    if not runs:
        return []
    memory = memory_of(target)
    found = []
    for run in runs:
        start, at, end = info.start + run.source * item, run.target * item, (run.target + run.length) * item
        while at < end:
            size = min(end - at, BLOCK - start % BLOCK)
            found.append(Piece(start, size, memory[at : at + size]))
            start += size
            at += size
    return found


def _bounced(info: TensorInfo, target: torch.Tensor, source: torch.dtype, runs: Sequence[Run]) -> list[Piece]:
    """Pieces of whole elements, cut near the blocks of the file, that are converted or sent to a device."""
    item = source.itemsize
    flat, ready = target.detach().view(-1), _ready(target)
    found = []
    for run in runs:
        at, left = run.target, run.length
        start = info.start + run.source * item
        while left:
            count = min(left, max(1, (BLOCK - start % BLOCK) // item))
            place = flat[at : at + count]
            finish = functools.partial(_finish, place, ready, source, count * item)
            found.append(Piece(start, count * item, None, finish))
            start += count * item
            at += count
            left -= count
    return found


def _finish(place: torch.Tensor, ready: Any, source: torch.dtype, size: int, buffer: Buffer, at: int) -> None:
    _deliver(place, ready, buffer.tensor(at, size, source))


def _rows(
    info: TensorInfo, target: torch.Tensor, source: torch.dtype, offsets: Sequence[int], rows: Rows
) -> list[Piece]:
    """Pieces of whole rows, of which the slice is taken."""
    shape = shape_of(info)
    row = math.prod(shape[1:]) * source.itemsize
    most = max(1, BLOCK // row)
    cut = tuple(
        slice(offset, offset + size) for offset, size in zip(offsets[1:], target.shape[1:], strict=True)
    )
    found, ready = [], _ready(target)
    for first in range(0, rows.length, most):
        count = min(most, rows.length - first)
        place = target.detach()[first : first + count]
        finish = functools.partial(_finish_rows, place, ready, source, (count, *shape[1:]), cut)
        found.append(Piece(info.start + (rows.first + first) * row, count * row, None, finish))
    return found


def _finish_rows(
    place: torch.Tensor,
    ready: Any,
    source: torch.dtype,
    shape: Sequence[int],
    cut: tuple[slice, ...],
    buffer: Buffer,
    at: int,
) -> None:
    whole = buffer.tensor(at, math.prod(shape) * source.itemsize, source).view(tuple(shape))
    _deliver(place, ready, whole[(slice(None), *cut)])


def _ready(target: torch.Tensor) -> Any:
    """For memory of a GPU: when its work is done that may still use it.

    It may be the memory of a tensor that was freed while work with it is queued on this thread's stream.
    """
    if target.device.type != "cuda":
        return None
    return torch.cuda.current_stream(target.device).record_event()


def _deliver(place: torch.Tensor, ready: Any, elements: torch.Tensor) -> None:
    """Copy elements of a buffer to their place; to a GPU on a stream that is awaited."""
    with torch.no_grad():
        if place.device.type != "cuda":
            place.copy_(elements)
            return
        stream = torch.cuda.Stream(place.device)  # type: ignore[no-untyped-call]
        stream.wait_event(ready)
        with torch.cuda.stream(stream):
            if elements.dtype == place.dtype and elements.is_contiguous() and place.is_contiguous():
                place.copy_(elements, non_blocking=True)
            else:
                # Converted there, not here: the GPU is faster at it.
                place.copy_(elements.to(place.device, non_blocking=True))
        stream.synchronize()
