"""Index files from rows of Python numbers. Without numpy, which would take most of a worker's start."""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence

import msgspec

from shardstream.format.cells import Cell, Cells
from shardstream.format.columns import Tensor

FrameRow = tuple[int, int, int, int, int, int]
_INT32_MAX = 2**31 - 1
_SPARSE_FROM = 1 << 17  # cells of a table, which takes 1 MiB then
_Tensor = tuple[str, str, tuple[int, ...], "array[int]"]


def index_bytes(
    frames: Sequence[FrameRow],
    cells: Iterable[Cell],
    keys: Sequence[bytes],
    columns: int,
) -> bytes:
    """The index file of a shard without columns of values; see `index_parts`."""
    return index_parts(frames, cells, keys, columns)[0]


def index_parts(
    frames: Sequence[FrameRow],
    cells: Iterable[Cell],
    keys: Sequence[bytes],
    columns: int,
    values: Sequence[Tensor] = (),
) -> tuple[bytes, bytes]:
    """The index file of a shard: its head, and the columns of values behind it.

    The head alone is what readers of samples need. Without columns of values it is the file, byte for byte as
    the safetensors library writes the arrays of ShardIndex.

    Args:
        frames: For each frame its offset, size, raw offset and raw size in bytes, the number of its first
            sample, and its checksum.
        cells: For each field of a sample the number of the sample, the column, the offset within the frame
            and the size, both in bytes.
        keys: The key of each sample, in UTF-8.
        columns: How many fields there are.
        values: The arrays of the columns of values, in the order of the columns.
    """
    assert sys.byteorder == "little", "shardstream needs a little-endian machine"
    samples = len(keys)
    table = cells.table(columns) if isinstance(cells, Cells) else None
    if table is None:
        listed = list(cells)
        if is_sparse(samples, columns, len(listed)):
            return _file(_frame_tensors(frames, keys), _sparse_tensors(listed, samples), keys, values)
        table = _table(listed, samples, columns)
    offsets, sizes = table
    small = max(max(offsets, default=0), max(sizes, default=0)) <= _INT32_MAX
    kind = "I32" if small else "I64"
    fields: tuple[_Tensor, ...] = (
        ("field_offset", kind, (samples, columns), array("i" if small else "q", offsets)),
        ("field_size", kind, (samples, columns), array("i" if small else "q", sizes)),
    )
    return _file(_frame_tensors(frames, keys), fields, keys, values)


def _table(cells: Iterable[Cell], samples: int, columns: int) -> tuple[list[int], list[int]]:
    offsets = [0] * (samples * columns)
    sizes = [-1] * (samples * columns)
    for row, column, offset, size in cells:
        offsets[row * columns + column] = offset
        sizes[row * columns + column] = size
    return offsets, sizes


def is_sparse(samples: int, columns: int, cells: int) -> bool:
    """Whether an index lists the fields that samples have, since a table of all would be large and empty.

    Args:
        samples, columns: The sides of the table.
        cells: How many fields all samples have.
    """
    return samples * columns >= _SPARSE_FROM and samples * columns > 4 * cells


def _sparse_tensors(cells: Sequence[Cell], samples: int) -> tuple[_Tensor, ...]:
    rows = sorted(cells)
    counts = [0] * samples
    for row, _, _, _ in rows:
        counts[row] += 1
    small = max((max(offset, size) for _, _, offset, size in rows), default=0) <= _INT32_MAX
    kind, code = ("I32", "i") if small else ("I64", "q")
    bounds = array("Q", itertools.accumulate(counts, initial=0))
    tensors: list[_Tensor] = [
        ("cell_bound", "U64", (len(bounds),), bounds),
        ("cell_offset", kind, (len(rows),), array(code, [cell[2] for cell in rows])),
        ("cell_size", kind, (len(rows),), array(code, [cell[3] for cell in rows])),
        ("cell_field", "I32", (len(rows),), array("i", [cell[1] for cell in rows])),
    ]
    return tuple(tensors)


def _frame_tensors(frames: Sequence[FrameRow], keys: Sequence[bytes]) -> tuple[_Tensor, ...]:
    table = tuple(zip(*frames, strict=True)) if frames else ((),) * 6
    bounds = itertools.accumulate(map(len, keys), initial=0)
    # In the order of the safetensors library: wider types first, and by name among equal types.
    return (
        ("frame_checksum", "U64", (len(frames),), array("Q", table[5])),
        ("frame_first", "U64", (len(frames) + 1,), array("Q", (*table[4], len(keys)))),
        ("frame_offset", "U64", (len(frames),), array("Q", table[0])),
        ("frame_raw_offset", "U64", (len(frames),), array("Q", table[2])),
        ("frame_raw_size", "U64", (len(frames),), array("Q", table[3])),
        ("frame_size", "U64", (len(frames),), array("Q", table[1])),
        ("key_offset", "U64", (len(keys) + 1,), array("Q", bounds)),
    )


def _file(
    frames: tuple[_Tensor, ...], fields: tuple[_Tensor, ...], keys: Sequence[bytes], values: Sequence[Tensor]
) -> tuple[bytes, bytes]:
    """The two parts of an index file; see `index_parts`."""
    tensors = (*frames, *fields)
    key_bytes = b"".join(keys)
    header: dict[str, object] = {}
    at = 0
    for name, dtype, shape, data in tensors:
        end = at + len(data) * data.itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, end)}
        at = end
    header["key_bytes"] = {
        "dtype": "U8", "shape": (len(key_bytes),), "data_offsets": (at, at + len(key_bytes)),
    }  # fmt: skip
    at += len(key_bytes)
    # Wider types first, so that all are aligned. The header has the order in which the columns were given:
    # from it alone a lost manifest is made again.
    behind = sorted(values, key=lambda value: (-int(value.dtype[1:]), value.name))
    begins = itertools.accumulate((len(value.data) for value in behind), initial=at)
    places = dict(zip((value.name for value in behind), begins, strict=False))
    for value in values:
        begin = places[value.name]
        header[value.name] = {
            "dtype": value.dtype, "shape": (value.length,), "data_offsets": (begin, begin + len(value.data)),
        }  # fmt: skip
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    head = b"".join((struct.pack("<Q", len(text)), text, *(tensor[3] for tensor in tensors), key_bytes))
    return head, b"".join(value.data for value in behind)
