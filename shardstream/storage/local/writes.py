"""Writing to open files: all parts, without joining them, and out of room before the first byte is copied."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

__all__ = ["begin_sync", "flat", "reserve", "sync_folder", "write_parts"]

_AT_ONCE = 512  # parts of one call of the system, which takes 1,024
_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_WORTH = 1 << 20  # bytes from which on it is worth a call to reserve room

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_sync_range = getattr(_libc, "sync_file_range", None)  # Linux has it
if _sync_range is not None:
    _sync_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


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


def begin_sync(file: int, start: int, size: int) -> None:
    """Begin to write bytes of a file to its disk, which a later fsync then waits for less long.

    Errors are those of the fsync.
    """
    if _sync_range is not None:
        _sync_range(file, start, size, _WRITE)


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


def sync_folder(folder: str) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
