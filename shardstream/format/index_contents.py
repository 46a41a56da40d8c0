"""What an index file lists beside the arrays of `ShardIndex`: how much there is, and columns of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shardstream.errors import CorruptionError
from shardstream.format.arrays import ArrayFile
from shardstream.format.column_arrays import StoredColumn, names_of, stored_columns
from shardstream.format.columns import ColumnInfo
from shardstream.format.index import HEAD_ARRAYS, head_arrays

__all__ = ["Counts", "columns_from_bytes", "index_counts"]


class Counts(NamedTuple):
    """How much an index lists: its columns of fields, samples, frames, and the bytes of their tar."""

    fields: int
    samples: int
    frames: int
    raw_bytes: int


def index_counts(data: bytes, where: str) -> Counts:
    """How much an index lists, of which no manifest says it.

    Raises:
        CorruptionError: It is no index, or it has columns of values.
    """
    file = ArrayFile(data, where)
    names = head_arrays(file)
    arrays = file.take(set(names), set())
    offsets, sizes = arrays["frame_raw_offset"], arrays["frame_raw_size"]
    raw = int(offsets[-1]) + int(sizes[-1]) if len(offsets) and len(sizes) else 0
    if names is not HEAD_ARRAYS:
        places = arrays["cell_field"]
        shape: tuple[int, ...] = (0, int(places.max()) + 1 if places.size else 0)
    else:
        shape = arrays["field_offset"].shape
    if len(shape) != 2 or len(arrays["key_offset"]) < 1:
        raise CorruptionError(f"{where}: not an index file (fields of shape {shape})")
    return Counts(shape[1], len(arrays["key_offset"]) - 1, len(offsets), raw)


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
