"""Writing to open files: all parts, without joining them, and out of room before the first byte is copied."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

__all__ = ["flat", "reserve", "write_parts"]

_AT_ONCE = 512  # parts of one call of the system, which takes 1,024
_WORTH = 1 << 20  # bytes from which on it is worth a call to reserve room

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def reserve(file: int, size: int) -> None:
    """Reserve room for a file of `size` bytes, where the file system can.

    Not by `os.posix_fallocate`: where the file system cannot, the C library writes into each block instead.

    Raises:
        OSError: There is no room.
    """
    if size >= _WORTH and _libc.fallocate(file, 0, 0, size):
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(number, os.strerror(number))


def flat(parts: Iterable[bytes | bytearray | memoryview]) -> list[memoryview]:
    """The parts that are not empty, each as a view of single bytes."""
    views = [part if isinstance(part, memoryview) else memoryview(part) for part in parts]
    return [view.cast("B") for view in views if view.nbytes]


def write_parts(file: int, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write parts to an open file, from where it stands.

    Raises:
        OSError: Not all could be written.
    """
    views = flat(parts)
    reserve(file, sum(map(len, views)))
    first = 0
    while first < len(views):
        count = os.writev(file, views[first : first + _AT_ONCE])  # Linux takes at most 2 GiB at once
        while first < len(views) and count >= len(views[first]):
            count -= len(views[first])
            first += 1
        if count:
            views[first] = views[first][count:]
