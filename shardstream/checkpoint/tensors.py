"""Torch's tensors as bytes: names of dtypes, the parts that a rank holds, copies out of and into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from shardstream.errors import StateError
from shardstream.slices import Box

if TYPE_CHECKING:
    import torch

__all__ = ["Piece", "bytes_of", "copier", "dtype_name", "dtype_named", "pieces_of"]

_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0", "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16",
    "int32": "I32", "uint32": "U32", "float32": "F32", "int64": "I64", "uint64": "U64", "float64": "F64",
    "complex64": "C64", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float4_e2m1fn_x2": "F4_E2M1X2", "complex32": "C32", "complex128": "C128",
}  # fmt: skip
_DTYPES = {theirs: ours for ours, theirs in _NAMES.items()}


def dtype_name(dtype: torch.dtype, where: str) -> str:
    """The name that files have for a dtype.

    Raises:
        StateError: There is none, as for quantized tensors; it names the tensor `where`.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _NAMES:
        raise StateError(f"{where}: tensors of dtype {dtype} cannot be stored")
    return _NAMES[name]


def dtype_named(name: str) -> torch.dtype:
    """The dtype that a file's name stands for."""
    import torch

    found: torch.dtype = getattr(torch, _DTYPES[name])
    return found


class Piece(NamedTuple):
    """A part of a tensor that this rank holds.

    Attributes:
        data: Its values, a plain tensor, which shares the memory of the whole.
        box: Where it lies in the whole tensor.
    """

    data: torch.Tensor
    box: Box


def pieces_of(tensor: torch.Tensor, where: str) -> list[Piece]:
    """The parts of a tensor that this rank holds: one, or none of a DTensor whose mesh is elsewhere.

    Args:
        tensor: A plain tensor, which is one part, or a DTensor.
        where: Its name, for messages.

    Raises:
        StateError: It is of a kind that cannot be stored.
    """
    import torch

    name = type(tensor).__name__
    if name in ("ShardedTensor", "FlatParameter"):
        raise StateError(
            f"{where}: a {name} cannot be stored; shard with fully_shard (FSDP2), or give FSDP1 a device_mesh"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise StateError(f"{where}: only dense tensors can be stored, this one is {tensor.layout}")
    if tensor.is_meta:
        raise StateError(f"{where}: it is on the meta device and has no memory; make it real first")
    if hasattr(tensor, "device_mesh") and hasattr(tensor, "placements"):
        return _local_piece(tensor, where)
    return [Piece(tensor.detach(), Box((0,) * tensor.dim(), tuple(tensor.shape)))]


def _local_piece(tensor: Any, where: str) -> list[Piece]:
    mesh, shape = tensor.device_mesh, tuple(tensor.shape)
    place = mesh.get_coordinate()
    if place is None:
        return []
    local = tensor.detach().to_local()
    if hasattr(local, "wait"):
        local = local.wait()
    starts, sizes = [0] * len(shape), list(shape)
    for dim in _order(tensor.placements, where):
        placement = tensor.placements[dim]
        # As torch.chunk: parts of equal size, the last ones smaller or empty.
        size = sizes[placement.dim]
        part = -(-size // mesh.size(dim))
        first = min(place[dim] * part, size)
        starts[placement.dim] += first
        sizes[placement.dim] = min(part, size - first)
    if tuple(sizes) != tuple(local.shape):
        raise StateError(
            f"{where}: a rank holds a part of shape {tuple(local.shape)}, and {tuple(sizes)} was expected of "
            f"placements {tensor.placements}"
        )
    return [Piece(local, Box(tuple(starts), tuple(sizes)))]


def _order(placements: Sequence[Any], where: str) -> Iterator[int]:
    """The dimensions of the mesh that shard, in the order in which they cut the tensor.

    FSDP2 cuts what tensor parallelism has cut before, although its dimension of the mesh comes first. Its
    placement is then a strided one.
    """
    later: list[int] = []
    for dim, placement in enumerate(placements):
        kind = type(placement).__name__
        if placement.is_replicate():
            continue
        if kind == "_StridedShard":
            later.insert(0, dim)
        elif placement.is_shard():
            yield dim
        else:
            raise StateError(
                f"{where}: a DTensor of placements {placements} cannot be stored: reduce it first"
            )
    yield from later


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.reshape(-1).view(torch.uint8)


def copier(tensor: torch.Tensor) -> Callable[[int, memoryview], None]:
    """A function (start, into) that copies the tensor's bytes from `start` into memory.

    Args:
        tensor: A plain tensor, on any device, contiguous or not.
    """
    import torch

    kept: list[torch.Tensor] = []  # bytes in order, only while they are copied

    def copy(start: int, into: memoryview) -> None:
        if not len(into):
            return
        if not kept:
            kept.append(_flat(tensor.detach().resolve_conj().resolve_neg().contiguous()))
        source = kept[0]
        end = start + len(into)
        torch.frombuffer(into, dtype=torch.uint8).copy_(source[start:end])
        if end == len(source):
            kept.clear()

    return copy


def bytes_of(tensor: torch.Tensor) -> memoryview | None:
    """The memory of a plain tensor, to write into; None if it is not contiguous memory of the CPU."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    found: memoryview = _flat(tensor.detach()).numpy().data
    return found
