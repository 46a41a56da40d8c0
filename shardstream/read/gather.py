"""Many runs of tokens, wherever they lie in memory, in one call of numpy.

Numpy gathers from one array. Frames are buffers of their own, and a batch draws from hundreds of
them; a call for each costs more than the copying. So the array here is the address space from the
first run to the last, of which only the runs themselves are touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rows", "address", "gather_runs"]

Ints = NDArray[np.int64]
_STEP = 128 << 10  # bytes that lie between the two halves of a gather, in the processor's cache


class _Memory:
    """An array of the items that begin at an address, `step` bytes apart."""

    def __init__(self, at: int, count: int, kind: str, step: int) -> None:
        self.__array_interface__ = {
            "version": 3, "data": (at, True), "shape": (count,), "typestr": kind, "strides": (step,),
        }  # fmt: skip


def address(buffer: NDArray[np.uint8]) -> int:
    """Where a buffer begins."""
    return int(buffer.__array_interface__["data"][0])


class Rows:
    """Rows of `length` tokens at n addresses, which must be valid as long as this is used."""

    def __init__(self, rows: Ints, length: int, stored: np.dtype[Any]) -> None:
        low = int(rows.min())
        self._length, self._stored, self._at = length, stored, rows - low
        size = length * stored.itemsize
        # A row is one opaque item: numpy copies it with memcpy, and lets go of the GIL for all of them.
        self._items = np.asarray(_Memory(low, int(rows.max()) - low + 1, f"|V{size}", 1))
        self._step = max(1, _STEP // size)

    def copy(self, begin: int, end: int, out: np.dtype[Any]) -> NDArray[Any]:
        """A new array of some rows."""
        found = self._items[self._at[begin:end]]
        # Of the same size: no conversion, the bytes are the same.
        if out.itemsize == self._stored.itemsize:
            return found.view(out).reshape(-1, self._length)
        return found.view(self._stored).reshape(-1, self._length).astype(out)

    def fill(self, out: NDArray[Any]) -> None:
        """Fill out [n, length] with all rows."""
        kind = out.dtype if out.dtype.itemsize == self._stored.itemsize else self._stored
        for begin in range(0, len(out), self._step):
            found = self._items[self._at[begin : begin + self._step]]
            out[begin : begin + self._step] = found.view(kind).reshape(-1, self._length)


def gather_runs(runs: Ints, lengths: Ints, stored: np.dtype[Any]) -> NDArray[Any]:
    """The tokens of runs of any lengths, one after another; the addresses must be valid and aligned."""
    low, step = int(runs.min()), stored.itemsize
    count = (int(runs.max()) - low) // step + int(lengths.max())
    items: NDArray[Any] = np.asarray(_Memory(low, count, stored.str, step))
    at = np.repeat((runs - low) // step - (np.cumsum(lengths) - lengths), lengths)
    at += np.arange(len(at), dtype=np.int64)
    found: NDArray[Any] = items[at]
    return found
