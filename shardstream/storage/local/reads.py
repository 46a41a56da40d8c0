"""Reading from open files: all bytes that are asked for, even if one call of the system gives fewer."""

from __future__ import annotations

import os
from collections.abc import Sequence

from shardstream.errors import StorageError

__all__ = ["read_at", "read_exactly", "read_parts", "version_of"]

_AT_ONCE = 1 << 30  # bytes; above it, the result of the first call would have to be copied
_MOST_VIEWS = 1024  # that the system takes in one call


def read_at(file: int, start: int, size: int) -> bytes | memoryview:
    """`size` bytes of an open file from `start`, fewer at its end.

    No memory is allocated for bytes that are not there: `size` may come from a damaged file.
    """
    size = min(size, max(0, os.fstat(file).st_size - start))
    # Linux gives at most 2 GiB - 4 KiB at once; a network file system may give less.
    data = os.pread(file, size, start) if size <= _AT_ONCE else b""
    if len(data) == size:
        return data
    whole = memoryview(bytearray(size))
    filled = len(data)
    whole[:filled] = data
    del data
    while filled < size:
        count = os.preadv(file, [whole[filled:]], start + filled)
        if not count:
            break  # it was made shorter meanwhile
        filled += count
    return whole[:filled].toreadonly()


def read_exactly(file: int, start: int, size: int, where: str) -> bytes | memoryview:
    """`size` bytes of an open file from `start`, else StorageError."""
    end = os.fstat(file).st_size
    if min(start, size) < 0 or start + size > end:
        raise StorageError(f"{where}: bytes {start} to {start + size} of {end} do not exist")
    data = read_at(file, start, size)
    if len(data) < size:
        raise StorageError(f"{where}: it ends at byte {start + len(data)}, not at {start + size}")
    return data


def version_of(file: int) -> tuple[str, int]:
    """(what names the version of an open file, its size): another one after each write, or a replacement."""
    found = os.fstat(file)
    return f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}", found.st_size


def read_parts(file: int, parts: Sequence[tuple[int, memoryview]], where: str) -> None:
    """Fill views with bytes of an open file. Neighbours take one call of the system.

    Raises:
        StorageError: A part lies outside of the file.
    """
    size = os.fstat(file).st_size
    run: list[memoryview] = []
    begin = end = 0
    for start, view in sorted(parts, key=lambda part: part[0]):
        if start < 0 or start + len(view) > size:
            raise StorageError(f"{where}: bytes {start} to {start + len(view)} of {size} do not exist")
        if run and (start != end or len(run) == _MOST_VIEWS or end - begin >= _AT_ONCE):
            _fill(file, run, begin, where)
            run = []
        if len(view):
            begin = begin if run else start
            run.append(view)
            end = start + len(view)
    _fill(file, run, begin, where)


def _fill(file: int, views: list[memoryview], start: int, where: str) -> None:
    while views:
        count = os.preadv(file, views, start)
        if not count:
            raise StorageError(f"{where}: it ends at byte {start}: it was made shorter while it was read")
        start += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
