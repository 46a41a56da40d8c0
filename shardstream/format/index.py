"""ShardIndex: where each frame, sample and field of one shard lies.

A safetensors file (https://github.com/huggingface/safetensors): columnar arrays that load without
parsing and without pickle. docs/format.md describes each array.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shardstream.errors import CorruptionError
from shardstream.format.arrays import ArrayFile
from shardstream.format.column_arrays import names_of
from shardstream.format.columns import ColumnInfo
from shardstream.format.index_arrays import IndexArrays, index_problem
from shardstream.format.sparse import ARRAYS as SPARSE
from shardstream.format.sparse import SparseTable

HEAD_ARRAYS = {
    "frame_offset": "u8",
    "frame_size": "u8",
    "frame_raw_offset": "u8",
    "frame_raw_size": "u8",
    "frame_first": "u8",
    "frame_checksum": "u8",
    "field_offset": "i4 i8",
    "field_size": "i4 i8",
    "key_bytes": "u1",
    "key_offset": "u8",
}
_DENSE = ("field_offset", "field_size")


@dataclass(frozen=True, eq=False)
class ShardIndex(IndexArrays):
    """The arrays of one shard, read and checked, and what is looked up in them."""

    @property
    def frames(self) -> int:
        """The number of frames that hold samples."""
        return len(self.frame_offset)

    @property
    def nbytes(self) -> int:
        """The bytes in memory. The keys count twice, since `key_data` is a copy of them."""
        arrays = [getattr(self, name) for name in HEAD_ARRAYS]
        return sum(int(array.nbytes) for array in arrays) + self.key_bytes.nbytes

    def key(self, sample: int) -> str:
        """The key of one sample."""
        begin, end = int(self.key_offset[sample]), int(self.key_offset[sample + 1])
        return self.key_data[begin:end].decode()

    def keys_list(self, begin: int, end: int) -> list[str]:
        """The keys of samples [begin, end)."""
        bounds = self.key_offset[begin : end + 1].tolist()
        return [self.key_data[a:b].decode() for a, b in itertools.pairwise(bounds)]

    def find(self, key: str) -> int | None:
        """The first sample with this key, or None."""
        wanted = key.encode("utf-8", "surrogatepass")
        bounds = self.key_offset
        at = self.key_data.find(wanted)
        while at >= 0:
            sample = int(np.searchsorted(bounds, np.uint64(at)))
            if (
                sample < self.samples
                and int(bounds[sample]) == at
                and int(bounds[sample + 1]) == at + len(wanted)
            ):
                return sample
            at = self.key_data.find(wanted, at + 1)
        return None

    def frame_of(self, sample: int) -> int:
        """The frame that holds a sample."""
        return int(np.searchsorted(self.frame_first, np.uint64(sample), side="right")) - 1

    def with_columns(self, stored: tuple[str, ...], wanted: tuple[str, ...]) -> ShardIndex:
        """The same index with other columns.

        Args:
            stored: The fields of the columns now.
            wanted: The fields of the columns of the result. Samples lack a field that is not in `stored`.
        """
        if stored == wanted:
            return self
        if isinstance(self.field_offset, SparseTable) and isinstance(self.field_size, SparseTable):
            return replace(
                self,
                field_offset=self.field_offset.with_columns(stored, wanted),
                field_size=self.field_size.with_columns(stored, wanted),
            )
        shape = (self.samples, len(wanted))
        offset = np.zeros(shape, self.field_offset.dtype)
        size = np.full(shape, -1, self.field_size.dtype)
        for column, name in enumerate(wanted):
            if name in stored:
                offset[:, column] = self.field_offset[:, stored.index(name)]
                size[:, column] = self.field_size[:, stored.index(name)]
        return replace(self, field_offset=offset, field_size=size)

    @classmethod
    def from_bytes(
        cls, data: bytes | memoryview, *, where: str, fields: int, samples: int, frames: int,
        shard_bytes: int, raw_bytes: int, contiguous: bool = True, columns: Sequence[ColumnInfo] = (),
    ) -> ShardIndex:  # fmt: skip
        """Load an index, and check it against the manifest.

        Args:
            data: The content of the index file, or of its head alone: without the columns of values.
            where: Its name, for messages.
            fields: How many columns the shard has.
            samples: How many samples.
            frames: How many frames.
            shard_bytes: The size of its file.
            raw_bytes: The size of the tar in it.
            contiguous: Whether frames lie one after another in the file. False if the file is one compressed
                stream: then each frame has the whole file as its stored bytes.
            columns: The columns of values behind the head. They are not looked at.

        Raises:
            CorruptionError: The file is no index, is damaged, or does not fit the manifest.
        """
        file = ArrayFile(data, where)
        names = head_arrays(file)
        arrays = file.take(set(names), names_of(columns))
        for name, kinds in names.items():
            if arrays[name].dtype.str[1:] not in kinds.split():
                raise CorruptionError(f"{where}: array {name} is of dtype {arrays[name].dtype}")
        if names is not HEAD_ARRAYS:
            bounds, places = arrays.pop("cell_bound").astype(np.int64), arrays.pop("cell_field")
            if any(array.ndim != 1 for array in (bounds, places, arrays["cell_offset"], arrays["cell_size"])):
                raise CorruptionError(f"{where}: the arrays of cells have more than one dimension")
            tables: dict[str, Any] = {
                "field_offset": SparseTable(bounds, places, arrays.pop("cell_offset"), fields, 0),
                "field_size": SparseTable(bounds, places, arrays.pop("cell_size"), fields, -1),
            }
            arrays |= tables
        index = cls(**arrays)
        problem = index_problem(index, fields, samples, frames, shard_bytes, raw_bytes, contiguous)
        if problem:
            raise CorruptionError(f"{where}: {problem}; the index does not fit its manifest")
        return index


def head_arrays(file: ArrayFile) -> dict[str, str]:
    """The arrays of an index besides columns of values, and their dtypes."""
    if "cell_bound" not in file.names:
        return HEAD_ARRAYS
    return {name: kinds for name, kinds in HEAD_ARRAYS.items() if name not in _DENSE} | SPARSE
