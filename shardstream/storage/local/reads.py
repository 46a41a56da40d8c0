"""Reading from open files: all bytes that are asked for, even if one call of the system gives fewer."""

from __future__ import annotations

import os

__all__ = ["read_at"]

_AT_ONCE = 1 << 30  # bytes; above it, the result of the first call would have to be copied


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
