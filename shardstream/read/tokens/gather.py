"""Copies many runs of tokens, which may lie anywhere in memory, with one call of numpy.

Numpy gathers from one array. But each frame is a buffer of its own, and a batch reads from hundreds of
frames: a call for each frame would cost more than the copying. So the array here is the address space from
the first run to the last run, and only the runs themselves are read.

Rows of such an array overlap. Numpy adds their sizes up, and refuses an array of 2**63 bytes or more. The
heap and the maps of a process may be 2**46 bytes apart. So rows that are too far apart are put into several
arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rows", "address", "gather_runs"]

Ints = NDArray[np.int64]
_STEP = 128 << 10  # bytes that are gathered and then converted at once, so that they stay in the CPU's cache
_MOST = 1 << 62  # bytes that an array may have in numpy's sum
_LONG = 16 << 10  # bytes from which on to copy a run costs more than a call of numpy


class _Memory:
    """An array of the items that begin at an address, `step` bytes apart."""

    def __init__(self, at: int, count: int, kind: str, step: int) -> None:
        self.__array_interface__ = {
            "version": 3, "data": (at, True), "shape": (count,), "typestr": kind, "strides": (step,),
        }  # fmt: skip


def address(buffer: NDArray[np.uint8]) -> int:
    """The address at which a buffer begins."""
    return int(buffer.__array_interface__["data"][0])


class Rows:
    """n rows of tokens, each at an address.

    Args:
        rows: int64 [n], the addresses, which must be valid.
        length: How many tokens a row has.
        stored: The dtype of the tokens.
        owners: The objects whose memory it is. They stay alive as long as this object.
    """

    def __init__(self, rows: Ints, length: int, stored: np.dtype[Any], owners: Sequence[Any]) -> None:
        self._length, self._stored, self._owners = length, stored, owners
        size = length * stored.itemsize
        # A row is one opaque item. Numpy copies it with memcpy, and releases the GIL while it copies all
        # rows.
        kind, reach = f"|V{size}", _MOST // size
        low, high = int(rows.min()), int(rows.max())
        self._areas: list[NDArray[Any]] = []
        self._area: Ints | None = None  # the array of each row, if there are several arrays
        if high - low < reach:
            self._at = rows - low
            self._areas.append(np.asarray(_Memory(low, high - low + 1, kind, 1)))
        else:
            self._area, self._at = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
            left = np.argsort(rows)
            while len(left):
                low = int(rows[left[0]])
                some = int(np.searchsorted(rows[left], low + reach))
                mine, left = left[:some], left[some:]
                self._area[mine], self._at[mine] = len(self._areas), rows[mine] - low
                self._areas.append(np.asarray(_Memory(low, int(rows[mine[-1]]) - low + 1, kind, 1)))
        self._step = max(1, _STEP // size)

    def _items(self, begin: int, end: int) -> NDArray[Any]:
        """A new array of some rows, each an opaque item."""
        at = self._at[begin:end]
        if self._area is None:
            return self._areas[0][at]
        area = self._area[begin:end]
        found = np.empty(len(at), self._areas[0].dtype)
        for number, items in enumerate(self._areas):
            mine = np.flatnonzero(area == number)
            found[mine] = items[at[mine]]
        return found

    def copy(self, begin: int, end: int, out: np.dtype[Any]) -> NDArray[Any]:
        """A new array [end - begin, length] of the rows from `begin` to `end`, of dtype `out`."""
        found = self._areas[0][self._at[begin:end]] if self._area is None else self._items(begin, end)
        # Dtypes of the same size have the same bytes, so that nothing has to be converted.
        if out.itemsize == self._stored.itemsize:
            return found.view(out).reshape(-1, self._length)
        return found.view(self._stored).reshape(-1, self._length).astype(out)

    def fill(self, out: NDArray[Any]) -> None:
        """Fill the array `out` [n, length] with all rows."""
        kind = out.dtype if out.dtype.itemsize == self._stored.itemsize else self._stored
        for begin in range(0, len(out), self._step):
            found = self._items(begin, begin + self._step)
            out[begin : begin + self._step] = found.view(kind).reshape(-1, self._length)


def gather_runs(runs: Ints, lengths: Ints, stored: np.dtype[Any]) -> NDArray[Any]:
    """The tokens of runs of any lengths, one after another.

    Args:
        runs: int64 [n], the addresses of the runs, which must be valid, and aligned to the dtype.
        lengths: int64 [n], how many tokens each run has.
        stored: The dtype of the tokens.
    """
    low, step = int(runs.min()), stored.itemsize
    if int(lengths.sum()) * step >= _LONG * len(runs):
        return _long_runs(runs, lengths, stored)
    count = (int(runs.max()) - low) // step + int(lengths.max())
    items: NDArray[Any] = np.asarray(_Memory(low, count, stored.str, step))
    at = np.repeat((runs - low) // step - (np.cumsum(lengths) - lengths), lengths)
    at += np.arange(len(at), dtype=np.int64)
    found: NDArray[Any] = items[at]
    return found


def _long_runs(runs: Ints, lengths: Ints, stored: np.dtype[Any]) -> NDArray[Any]:
    """The same with a call for each run. It needs no array with an index of 8 bytes for each token."""
    found = np.empty(int(lengths.sum()), stored)
    begin = 0
    for run, length in zip(runs.tolist(), lengths.tolist(), strict=True):
        found[begin : begin + length] = np.asarray(_Memory(run, length, stored.str, stored.itemsize))
        begin += length
    return found
