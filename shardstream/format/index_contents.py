"""What an index file lists beside the arrays of `ShardIndex`: how much there is, and columns of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shardstream.errors import CorruptionError
from shardstream.format.arrays import ArrayFile
from shardstream.format.column_arrays import StoredColumn, names_of, stored_columns
from shardstream.format.columns import ColumnInfo, Dtype
from shardstream.format.index import HEAD_ARRAYS, head_arrays

__all__ = ["Counts", "columns_from_bytes", "index_counts"]


class Counts(NamedTuple):
    """How much an index lists.

    Args:
        fields: How many columns of fields.
        samples: How many samples.
        frames: How many frames.
        raw_bytes: The bytes of their tar.
        columns: The columns of values, in their order.
        head: If there are such columns: the bytes of the index without them; else 0.
    """

    fields: int
    samples: int
    frames: int
    raw_bytes: int
    columns: tuple[ColumnInfo, ...] = ()
    head: int = 0


def index_counts(data: bytes, where: str) -> Counts:
    """How much an index lists, of which no manifest says it.

    Args:
        data: The content of the whole index file.
        where: Its name, for messages.

    Raises:
        CorruptionError: It is no index.
    """
    file = ArrayFile(data, where)
    names = head_arrays(file)
    columns = _column_infos(file, set(names))
    arrays = file.take(set(names), names_of(columns))
    offsets, sizes = arrays["frame_raw_offset"], arrays["frame_raw_size"]
    raw = int(offsets[-1]) + int(sizes[-1]) if len(offsets) and len(sizes) else 0
    if names is not HEAD_ARRAYS:
        places = arrays["cell_field"]
        shape: tuple[int, ...] = (0, int(places.max()) + 1 if places.size else 0)
    else:
        shape = arrays["field_offset"].shape
    if len(shape) != 2 or len(arrays["key_offset"]) < 1:
        raise CorruptionError(f"{where}: not an index file (fields of shape {shape})")
    head = file.end_of(names) if columns else 0
    return Counts(shape[1], len(arrays["key_offset"]) - 1, len(offsets), raw, columns, head)


def _column_infos(file: ArrayFile, head: set[str]) -> tuple[ColumnInfo, ...]:
    """The columns of values, as their arrays show them: the dtype by the width, or by the strings beside."""
    others = [name for name in file.names if name not in head]
    if not others:
        return ()
    arrays = file.take(set(others), head)
    infos = []
    for array in others:
        kind, _, name = array.partition(".")
        if kind != "column":
            continue
        values = arrays[array]
        dtype: Dtype = "int64" if values.dtype == np.int64 else "float64"
        if f"string_offset.{name}" in arrays:
            dtype, missing = "str", int((values == 0).sum())
        else:
            dtype = "bool" if values.dtype == np.uint8 else dtype
            missing = int(arrays[flags].sum()) if (flags := f"missing.{name}") in arrays else 0
        infos.append(ColumnInfo(name, dtype, missing))
    return tuple(infos)


def columns_from_bytes(
    data: bytes | memoryview, where: str, columns: Sequence[ColumnInfo], samples: int
) -> dict[str, StoredColumn]:
    """Load the columns of values of an index, and check them against the manifest.

    Args:
        data: The content of the whole index file.
        where: Its name, for messages.
        columns: The columns, as the manifest lists them.
        samples: How many samples the shard has.

    Raises:
        CorruptionError: The file is no index, is damaged, or does not fit the manifest.
    """
    file = ArrayFile(data, where)
    arrays = file.take(names_of(columns), set(head_arrays(file)))

    def fail(problem: str) -> CorruptionError:
        return CorruptionError(f"{where}: {problem}; the index does not fit its manifest")

    return stored_columns(arrays, columns, samples, fail)
