"""The bytes of rows in a tar, made by Arrow and numpy: a whole block of rows in a few calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import require
from shardstream.format.headers import BLOCK, header_parts
from shardstream.packing.tally import FACTOR, first_seed

if TYPE_CHECKING:
    from shardstream.packing.open_frame import Fields, OpenFrame

__all__ = ["RowLayout", "joined"]

# A header without a name, of no bytes. Its size has 11 octal digits, its checksum 6.
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 135), slice(148, 154)
_TEMPLATE = np.frombuffer(b"".join(header_parts(b"", 0)), np.uint8)
_TEMPLATE_SUM = int(_TEMPLATE[_SUM].tobytes(), 8) - int(_TEMPLATE[_SIZE].sum())
_DIGIT = ord("0")


class RowLayout:
    """Samples that have the same fields, as they lie in a tar.

    Args:
        keys: The keys of n samples.
        fields: The bytes of each of k fields by name, Arrow arrays of binary [n]. All members are usual.

    Attributes:
        raw: The bytes of all samples.
        ends: The byte behind each sample, [n].
        offsets: int64 [n, k], where the data of each field begins.
        sizes: int64 [n, k], the bytes of each field.
    """

    def __init__(self, keys: Sequence[str], fields: Mapping[str, Any]) -> None:
        compute, arrow = require("pyarrow.compute", "arrow"), require("pyarrow", "arrow")
        named = arrow.array(keys, arrow.string())
        parts = []
        self.sizes = np.stack([_sizes(data) for data in fields.values()], 1)
        rooms = -(-self.sizes // BLOCK) * BLOCK
        for number, (name, data) in enumerate(fields.items()):
            names = compute.ascii_rpad(
                compute.binary_join_element_wise(named, f".{name}", ""), 100, padding="\0"
            )
            parts.append(_headers(_bytes(names), self.sizes[:, number]))
            parts.append(data)
            parts.append(_zeros(rooms[:, number] - self.sizes[:, number]))
        raw = compute.binary_join_element_wise(*parts, b"")
        self.raw = _bytes(raw).data
        ends = _bounds(raw)[1:].astype(np.int64)
        self.ends: list[int] = ends.tolist()
        behind = np.cumsum(rooms + BLOCK, 1)  # of each member, from the begin of its sample
        self.offsets = (ends - behind[:, -1])[:, None] + behind - rooms

    def add_to(self, frame: OpenFrame, fields: Fields, begin: int, end: int) -> int:
        """Add samples [begin, end) to a frame; returns the bytes of their fields."""
        start = self.ends[begin - 1] if begin else 0
        offsets, sizes = self.offsets[begin:end].reshape(-1) - start, self.sizes[begin:end].reshape(-1)
        raw = self.raw[start : self.ends[end - 1]]
        frame.add_rows(fields, end - begin, raw, offsets.tolist(), sizes.tolist())
        return int(sizes.sum())


def joined(keys: Sequence[str], fields: Mapping[str, Any]) -> tuple[Iterator[memoryview], list[int]]:
    """Of each sample the bytes of its key and its fields, joined, and the seed of their digest; see `Tally`.

    Args:
        keys, fields: As for `RowLayout`.
    """
    compute, arrow = require("pyarrow.compute", "arrow"), require("pyarrow", "arrow")
    named = arrow.array(keys, arrow.string()).view(arrow.binary())
    whole = compute.binary_join_element_wise(named, *fields.values(), b"")
    bounds = _bounds(whole).tolist()
    view = _bytes(whole).data
    seeds = np.full(len(keys), first_seed(tuple(fields)), np.uint64) + _sizes(named).astype(np.uint64)
    for data in fields.values():
        seeds = seeds * np.uint64(FACTOR) + _sizes(data).astype(np.uint64)
    return map(view.__getitem__, map(slice, bounds, bounds[1:])), seeds.tolist()


def _headers(names: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Any:
    """Headers of members, an Arrow array of binary [n].

    Args:
        names: The names, 100 bytes each.
        sizes: The sizes, [n].
    """
    count = len(sizes)
    headers = np.empty((count, BLOCK), np.uint8)
    headers[:] = _TEMPLATE
    headers[:, _NAME] = names.reshape(count, 100)
    headers[:, _SIZE] = _octal(sizes, 11)
    sums = headers[:, _NAME].sum(1, dtype=np.int64) + headers[:, _SIZE].sum(1, dtype=np.int64)
    headers[:, _SUM] = _octal(sums + _TEMPLATE_SUM, 6)
    return _array(np.arange(0, (count + 1) * BLOCK, BLOCK), headers)


def _octal(numbers: NDArray[np.int64], digits: int) -> NDArray[np.uint8]:
    return ((numbers[:, None] >> np.arange(3 * digits - 3, -1, -3)) & 7).astype(np.uint8) + np.uint8(_DIGIT)


def _zeros(counts: NDArray[np.int64]) -> Any:
    """So many zero bytes for each sample, an Arrow array of binary."""
    bounds = np.concatenate(([0], np.cumsum(counts)))
    return _array(bounds, np.zeros(int(bounds[-1]), np.uint8))


def _array(bounds: NDArray[np.int64], data: NDArray[np.uint8]) -> Any:
    arrow = require("pyarrow", "arrow")
    offsets = arrow.py_buffer(bounds.astype(np.int32))
    return arrow.Array.from_buffers(
        arrow.binary(), len(bounds) - 1, [None, offsets, arrow.py_buffer(data.reshape(-1))]
    )


def _bounds(array: Any) -> NDArray[np.int32]:
    """Where the values of an Arrow array begin in its buffer, and where the last one ends."""
    return np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, 4 * array.offset)


def _sizes(array: Any) -> NDArray[np.int64]:
    return np.diff(_bounds(array)).astype(np.int64)


def _bytes(array: Any) -> NDArray[np.uint8]:
    """The bytes of all values of an Arrow array, one after another."""
    bounds, data = _bounds(array), array.buffers()[2]
    begin, end = int(bounds[0]), int(bounds[-1])
    return np.frombuffer(data, np.uint8, end - begin, begin) if end > begin else np.empty(0, np.uint8)
