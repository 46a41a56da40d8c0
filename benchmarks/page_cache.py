"""The page cache of the machine: files are dropped from it, and what it holds of them is counted."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["drop", "files_below", "read", "resident"]


def files_below(folder: str | Path) -> list[str]:
    """All files below a folder."""
    return [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]


def drop(paths: Iterable[str]) -> None:
    """Take files out of the page cache. Their dirty pages are written first, since only clean ones can go.

    Pages that a process has mapped stay: see `resident`.
    """
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def read(paths: Iterable[str]) -> None:
    """Read files, so that they are in the page cache if it has room."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def resident(paths: Iterable[str]) -> float:
    """The share of the files' pages that the page cache holds, 0 to 1, by `mincore`."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    pages = there = 0
    for path in paths:
        size = os.path.getsize(path)
        if not size:
            continue
        file = os.open(path, os.O_RDONLY)
        try:
            # Not mmap.mmap: it does not tell its address for a map that is only read.
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
            if address == ctypes.c_void_p(-1).value:
                raise OSError(ctypes.get_errno(), f"cannot map {path}")
            try:
                found = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
                if libc.mincore(address, size, found):
                    raise OSError(ctypes.get_errno(), f"cannot look at the pages of {path}")
            finally:
                libc.munmap(address, size)
        finally:
            os.close(file)
        pages += len(found)
        there += sum(byte & 1 for byte in found.raw)
    return there / pages if pages else 0.0
