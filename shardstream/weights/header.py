"""The header of a safetensors file: which tensors it holds, and where. It is checked before it is believed.

The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from shardstream.errors import CorruptionError
from shardstream.storage.store import Store

__all__ = ["BITS", "LARGEST", "FileHeader", "TensorInfo", "parse_header", "read_header", "without_duplicates"]

LARGEST = 100_000_000  # bytes of a header, as safetensors allows
_FIRST = 64 << 10  # bytes that are read at first: most headers are shorter

# Bits of an element, by the names that safetensors has for dtypes.
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file.

    Attributes:
        name: Its name.
        file: The path of its file below the store.
        dtype: As safetensors names it, such as "BF16".
        shape: The sizes of its dimensions; empty for a single number.
        start: Where its bytes begin in the file.
        size: Its bytes.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class FileHeader:
    """What the header of a file says.

    Attributes:
        bytes: The size of the file.
        tensors: In the order of their bytes, which follow each other without a gap.
        metadata: Texts that the writer has added.
    """

    bytes: int
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]


def read_header(store: Store, file: str, where: str) -> FileHeader:
    """The header of one file, by one or two requests for its beginning.

    Raises:
        CorruptionError: It is no safetensors file, or its header does not fit its size.
        StorageError: It cannot be read.
    """
    first, total = store.read_start(file, _FIRST)
    if total < 8:
        raise CorruptionError(f"{where}: {total} bytes are no safetensors file")
    data = bytes(first)
    if data.startswith(b"version https://git-lfs.github.com/spec/"):
        raise CorruptionError(
            f"{where}: a pointer of Git LFS is here, not the file itself: get it by git lfs pull"
        )
    length = int.from_bytes(data[:8], "little")
    if length > min(LARGEST, total - 8):
        raise CorruptionError(
            f"{where}: a header of {length} bytes in a file of {total}: no safetensors file?"
        )
    if 8 + length > len(data):
        data += store.read_range(file, len(data), 8 + length - len(data))
    return parse_header(data[8 : 8 + length], total, file, where)


def parse_header(text: bytes, total: int, file: str, where: str) -> FileHeader:
    """The header of a file of `total` bytes.

    Args:
        text: The header without its length.
        total: Bytes of the file.
        file: The file's path, for the tensors.
        where: The file's name, for errors.

    Raises:
        CorruptionError: The header is damaged, or does not fit the file. The message names the tensor.
    """
    try:
        found = json.loads(text, object_pairs_hook=without_duplicates)
        if not isinstance(found, dict) or text[:1] != b"{":
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{where}: the header is no JSON of safetensors: {error}") from error
    metadata = found.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptionError(f"{where}: __metadata__ must hold texts")
    begin = 8 + len(text)
    tensors = sorted(
        (_tensor(name, entry, file, where, begin) for name, entry in found.items()),
        key=lambda tensor: (tensor.start, tensor.size),
    )
    end = begin
    for tensor in tensors:
        if tensor.start != end:
            kind = "overlaps another tensor" if tensor.start < end else "begins after a gap"
            raise CorruptionError(f"{where}: tensor {tensor.name!r} {kind}: byte {tensor.start}, not {end}")
        end += tensor.size
    if end != total:
        last = f", the last one is {tensors[-1].name!r}" if tensors else ""
        raise CorruptionError(f"{where}: the tensors end at byte {end}{last}; the file has {total} bytes")
    return FileHeader(total, tuple(tensors), metadata)


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError if it has a name twice, of which Python would take the last one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _tensor(name: str, entry: Any, file: str, where: str, begin: int) -> TensorInfo:
    def fail(problem: str) -> CorruptionError:
        return CorruptionError(f"{where}: tensor {name!r}: {problem}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise fail("its entry must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise fail(f"the dtype {dtype!r} is not known here")
    if not _are_sizes(shape):
        raise fail("its shape must be a list of whole numbers")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail("its data_offsets must be two whole numbers, in order")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or (BITS[dtype] < 8 and shape and shape[-1] * BITS[dtype] % 8):
        raise fail(f"its elements of {BITS[dtype]} bits do not end at a byte: it is misaligned")
    if offsets[1] - offsets[0] != bits // 8:
        raise fail(f"{offsets[1] - offsets[0]} bytes for a {dtype} of shape {shape}, which needs {bits // 8}")
    return TensorInfo(name, file, dtype, tuple(shape), begin + offsets[0], bits // 8)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
