"""Arrays of NumPy's .npy format: copied once out of the memory in which they are stored.

`np.load` takes a file: it would copy the bytes to make a file of them, then piece by piece into an array. For
arrays of megabytes these copies, and the new memory for them, cost more than all else that a loader does.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from shardstream.storage.fetch.cancellable_map import cancellable_map

__all__ = ["decode", "stacked", "viewed"]

Data = bytes | memoryview
Memory = Callable[[int], NDArray[np.uint8]]

_MAGIC = npy_format.magic(1, 0)
_START = len(_MAGIC) + 2  # bytes in front of the header: the magic, and the length of the header
_LONGEST = 1 << 10  # bytes of headers that are remembered; longer ones are of structured arrays
_PLAIN = "biufc"
_MOST_AXES = 31  # every NumPy has arrays of one more, as a batch is


@functools.lru_cache(256)
def _header(start: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool] | None:
    """(dtype, shape, whether the first axis varies fastest) of the beginning of a file; None if it is odd."""
    try:
        shape, fortran, dtype = npy_format.read_array_header_1_0(io.BytesIO(start[len(_MAGIC) :]))
    except Exception:  # noqa: BLE001 - `np.load` says what is wrong
        return None
    # A damaged header may have negative numbers, and two of them have a positive product.
    sound = min(shape, default=0) >= 0 and len(shape) <= _MOST_AXES
    return (dtype, shape, fortran) if sound and dtype.kind in _PLAIN else None


def viewed(data: Data) -> NDArray[Any] | None:
    """The array of numbers that a .npy file holds, in the memory of `data`; read-only.

    Returns:
        The array. None if it has no elements, or is damaged, or of another version or kind of dtype:
        `np.load` knows what to do then.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        return None
    begin = _START + int.from_bytes(data[len(_MAGIC) : _START], "little")
    if begin > _LONGEST or (found := _header(bytes(data[:begin]))) is None:
        return None
    dtype, shape, fortran = found
    count = math.prod(shape)
    if not 0 < count * dtype.itemsize <= len(data) - begin:
        return None
    array = np.frombuffer(data, dtype, count, begin)
    array.flags.writeable = False
    return array.reshape(shape, order="F" if fortran else "C")


def decode(data: Data) -> Any:
    """The array of a .npy file, as `np.load` gives it without pickle, in memory of its own.

    Raises:
        ValueError: The file is damaged, or holds objects.
    """
    found = viewed(data)
    return np.load(io.BytesIO(data), allow_pickle=False) if found is None else found.copy(order="K")


def stacked(column: Sequence[Data | None], memory: Memory | None) -> NDArray[Any] | None:
    """The arrays of B samples in one array [B, ...], each copied once.

    Args:
        column: The .npy file of each sample; None if a sample lacks it.
        memory: From a number of bytes to an array uint8 of that size, with undefined content. None: from the
            system.

    Returns:
        The array. None if `viewed` is None for one of them, or if they are not all of one shape and dtype.
    """
    views: list[NDArray[Any]] = []
    for data in column:
        view = None if data is None else viewed(data)
        if view is None or (views and (view.shape != views[0].shape or view.dtype != views[0].dtype)):
            return None
        views.append(view)
    dtype = views[0].dtype.newbyteorder("=")  # as np.stack gives it
    size = dtype.itemsize * views[0].size * len(views)
    space = np.empty(size, np.uint8) if memory is None else memory(size)
    batch: NDArray[Any] = space.view(dtype).reshape(len(views), *views[0].shape)

    def copy(row: int) -> None:
        batch[row, ...] = views[row]

    cancellable_map(copy, range(len(views)))
    return batch
