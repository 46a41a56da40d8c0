"""Many runs of tokens, wherever they lie in memory, in one call of numpy.

Numpy gathers from one array. Frames are buffers of their own, and a batch draws from hundreds of
them; a call for each costs more than the copying. So the array here is the address space from the
first run to the last, of which only the runs themselves are touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["address", "gather_rows", "gather_runs"]

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


def gather_rows(rows: Ints, length: int, stored: np.dtype[Any], out: NDArray[Any]) -> None:
    """Fill out [n, length] with the rows of `stored` tokens at n addresses, which must be valid."""
    size = length * stored.itemsize
    low = int(rows.min())
    # A row is one opaque item: numpy copies it with memcpy, and lets go of the GIL for all of them.
    items = np.asarray(_Memory(low, int(rows.max()) - low + 1, f"|V{size}", 1))
    # Of the same size: no conversion, the bytes are the same.
    kind = out.dtype if out.dtype.itemsize == stored.itemsize else stored
    at = rows - low
    step = max(1, _STEP // size)
    for begin in range(0, len(at), step):
        found = items[at[begin : begin + step]]
        out[begin : begin + step] = found.view(kind).reshape(-1, length)


def gather_runs(runs: Ints, lengths: Ints, stored: np.dtype[Any]) -> NDArray[Any]:
    """The tokens of runs of any lengths, one after another; the addresses must be valid and aligned."""
    low, step = int(runs.min()), stored.itemsize
    count = (int(runs.max()) - low) // step + int(lengths.max())
    items: NDArray[Any] = np.asarray(_Memory(low, count, stored.str, step))
    at = np.repeat((runs - low) // step - (np.cumsum(lengths) - lengths), lengths)
    at += np.arange(len(at), dtype=np.int64)
    found: NDArray[Any] = items[at]
    return found
