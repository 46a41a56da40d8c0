"""Cells: where the fields of samples lie, while a shard is made. Without numpy, as all that workers need."""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Cell", "Cells", "Run"]

Cell = tuple[int, int, int, int]


class Run(NamedTuple):
    """Samples one after another that have the same fields.

    Args:
        begin: The number of the first sample.
        end: The number behind the last one.
        first: The number of its first cell.
        columns: The columns of the fields, in the order of the cells of each sample.
    """

    begin: int
    end: int
    first: int
    columns: tuple[int, ...]


class Cells:
    """The fields of all samples of a shard. A sample takes 16 bytes for each field, and no object.

    Attributes:
        offsets: Where the data of each field begins in its frame, in bytes, sample by sample.
        sizes: The bytes of each field.
    """

    def __init__(self) -> None:
        self.offsets: array[int] = array("q")
        self.sizes: array[int] = array("q")
        self._runs: list[tuple[int, int, tuple[int, ...]]] = []  # first sample, first cell, columns

    def __len__(self) -> int:
        return len(self.sizes)

    def begin(self, sample: int, columns: tuple[int, ...]) -> None:
        """Say which fields the samples from this one on have. Their offsets and sizes are then appended."""
        if not self._runs or self._runs[-1][2] != columns:
            self._runs.append((sample, len(self.sizes), columns))

    def runs(self, begin: int = 0, end: int | None = None) -> Iterator[Run]:
        """The runs of the samples in [begin, end), which are there. None: to the last one."""
        at = max(0, bisect.bisect_right(self._runs, begin, key=lambda run: run[0]) - 1)
        for run, following in itertools.zip_longest(self._runs[at:], self._runs[at + 1 :]):
            sample, cell, columns = run
            last = following[0] if following else sample + (len(self.sizes) - cell) // len(columns)
            start, stop = max(sample, begin), last if end is None else min(last, end)
            if start >= stop:
                return
            yield Run(start, stop, cell + (start - sample) * len(columns), columns)

    def __iter__(self) -> Iterator[Cell]:
        """Of each field of a sample the number of the sample, the column, the offset and the size."""
        for run in self.runs():
            at = run.first
            for sample in range(run.begin, run.end):
                for column in run.columns:
                    yield sample, column, self.offsets[at], self.sizes[at]
                    at += 1

    def table(self, columns: int) -> tuple[Sequence[int], Sequence[int]] | None:
        """The offsets and the sizes, if each sample has all fields in the order of columns; else None."""
        if len(self._runs) == 1 and self._runs[0][2] == tuple(range(columns)):
            return self.offsets, self.sizes
        return None
