"""Files mapped into memory.

These maps have no descriptor. Each `mmap.mmap` has one (before Python 3.13 always), and a process has 1,024
descriptors by default. The number of maps is limited by `vm.max_map_count`, 65,530 by default.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from shardstream.memory import when_dropped

__all__ = ["NO_MAP", "map_descriptor"]

NO_MAP = (errno.ENOMEM, errno.ENODEV)  # too many maps or too little room; a file system without maps

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_ssize_t
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def map_descriptor(file: int, size: int, writable: bool = False) -> memoryview:
    """The first `size` bytes of an open file in memory, until the last view of them is dropped.

    The file may be closed at once. If another process makes the file shorter, reading the missing bytes kills
    this process (SIGBUS).

    Raises:
        OSError: The file cannot be mapped; with a number in `NO_MAP`, it may still be read.
    """
    if not size:
        return memoryview(b"")
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    begin = _libc.mmap(None, size, access, mmap.MAP_SHARED, file, 0)
    if begin == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    owner = (ctypes.c_ubyte * size).from_address(begin)
    when_dropped(owner, _libc.munmap, begin, size)  # every view refers to `owner`
    view = memoryview(owner).cast("B")
    return view if writable else view.toreadonly()
