"""Cells of an index in which most samples lack most fields: those that are there, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ARRAYS", "SparseTable", "sparse_problem"]

# The arrays of an index file, which are there in place of field_offset and field_size, and their dtypes.
ARRAYS = {"cell_bound": "u8", "cell_field": "i4", "cell_offset": "i4 i8", "cell_size": "i4 i8"}


@dataclass(frozen=True, eq=False)
class SparseTable:
    """A table [n, K] of numbers. It takes the same indexes as an array, and gives arrays.

    Attributes:
        bounds: int64 [n + 1], where the cells of each row begin, then their number.
        columns: int32 [C], the column of each cell, rising in each row.
        values: [C], the number of each cell.
        width: K.
        empty: The number of all other cells.
    """

    bounds: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[Any]
    width: int
    empty: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.bounds) - 1, self.width

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.bounds.nbytes + self.columns.nbytes + self.values.nbytes

    def dense(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Some rows as an array [len(rows), K]."""
        begins = self.bounds[rows]
        counts = self.bounds[rows + 1] - begins
        found = np.full((len(rows), self.width), self.empty, self.values.dtype)
        row = np.repeat(np.arange(len(rows)), counts)
        cell = np.arange(len(row)) + np.repeat(begins - np.cumsum(counts) + counts, counts)
        found[row, self.columns[cell]] = self.values[cell]
        return found

    def __getitem__(self, at: Any) -> Any:
        rows, columns = at if isinstance(at, tuple) else (at, slice(None))
        picked = np.arange(self.shape[0])[rows]
        table = self.dense(picked.reshape(-1)) if picked.ndim else self.dense(picked[None])[0]
        if not picked.ndim or isinstance(columns, slice):
            return table[..., columns]
        places = np.arange(picked.size).reshape(picked.shape)
        return table[places, columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        table = self.dense(np.arange(self.shape[0]))
        return table if dtype is None else table.astype(dtype, copy=False)

    def with_columns(self, stored: Sequence[str], wanted: Sequence[str]) -> SparseTable:
        """The same table with the `wanted` columns; `stored` are the names of those that are there."""
        place = {name: column for column, name in enumerate(wanted)}
        moved = np.array([place.get(name, -1) for name in stored], np.int32)
        columns = moved[self.columns] if len(stored) else self.columns
        here = columns >= 0
        kept = np.concatenate(([0], np.cumsum(here)))
        return SparseTable(kept[self.bounds], columns[here], self.values[here], len(wanted), self.empty)


def sparse_problem(
    offset: SparseTable, size: SparseTable, samples: int, room: NDArray[np.int64]
) -> str | None:
    """What is wrong with the cells of an index, or None.

    Args:
        offset, size: Of each cell, in bytes.
        samples: How many samples there are.
        room: [n], the raw bytes of the frame of each sample.
    """
    bounds, columns = offset.bounds, offset.columns
    cells = len(columns)
    if (
        len(bounds) != samples + 1
        or int(bounds[0])
        or int(bounds[-1]) != cells
        or (np.diff(bounds) < 0).any()
    ):
        return "cell_bound does not rise from 0 to the number of cells"
    if len(offset.values) != cells or len(size.values) != cells:
        return "cells have no offset or no size"
    if cells and (int(columns.min()) < 0 or int(columns.max()) >= offset.width):
        return "a cell has a field that there is not"
    row = np.repeat(np.arange(samples), np.diff(bounds))
    if ((row[1:] == row[:-1]) & (columns[1:] <= columns[:-1])).any():
        return "the fields of a sample do not rise"
    if (size.values < 0).any() or (offset.values < 0).any():
        return "a field has a negative offset or size"
    if (size.values > room[row] - offset.values.astype(np.int64)).any():
        return "a field leaves its frame"
    return None
