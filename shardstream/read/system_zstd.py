"""The zstd library of the system, if there is a good one: it decompresses faster than that of `zstandard`.

From version 1.5.2 on, zstd has assembler code for Huffman codes. Wheels of `zstandard` are compiled without
it, and take an eighth more processor time to decompress text or tokens. The bytes are the same, as RFC 8878
says. So are the frames that are accepted, once `format.frames.check_size` has looked at their headers.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from shardstream.memory import when_dropped

__all__ = ["SystemZstd", "library"]

Bytes: TypeAlias = npt.NDArray[np.uint8]

_NAME = "libzstd.so.1"  # found by the dynamic linker, as for any program that uses it
_OLDEST = 1_05_02  # the first version with the assembler code, as zstd counts versions


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None if the system has none, or an older one."""
    try:
        found = ctypes.CDLL(_NAME)
        if found.ZSTD_versionNumber() < _OLDEST:
            return None
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        for name, result, arguments in (
            ("createDCtx", pointer, []),
            ("freeDCtx", size, [pointer]),
            ("decompressDCtx", size, [pointer, pointer, size, pointer, size]),
            ("findFrameCompressedSize", size, [pointer, size]),
            ("isError", ctypes.c_uint, [size]),
            ("getErrorName", ctypes.c_char_p, [size]),
        ):
            function = getattr(found, f"ZSTD_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return found


class SystemZstd:
    """A context to decompress with; for one thread at a time.

    Args:
        found: What `library` returned.
    """

    def __init__(self, found: ctypes.CDLL) -> None:
        self._library = found
        self._context = found.ZSTD_createDCtx()
        if not self._context:
            raise MemoryError("zstd has no memory for a context")
        when_dropped(self, found.ZSTD_freeDCtx, self._context)

    def fill(self, stored: bytes | memoryview, into: memoryview) -> int:
        """Decompress whole zstd frames, one or several, without the GIL.

        Args:
            stored: The frames. If the first one fills the memory, whatever lies behind it is ignored.
            into: Memory with room for their content.

        Returns:
            How many bytes the content has.

        Raises:
            zstandard.ZstdError: The frames are damaged, or there is too little room.
        """
        source, target = np.frombuffer(stored, np.uint8), np.frombuffer(into, np.uint8)
        size = self._decompress(source, target)
        failed = self._library.ZSTD_isError
        if failed(size):
            # `zstandard` stops when the memory is full. It never looks at what lies behind.
            first = self._library.ZSTD_findFrameCompressedSize(_address(source), len(source))
            more = not failed(first) and first < len(source)
            if more and self._decompress(source[:first], target) == len(target):
                return len(target)
            raise zstandard.ZstdError(self._library.ZSTD_getErrorName(size).decode())
        return size

    def _decompress(self, source: Bytes, target: Bytes) -> int:
        """How many bytes the content has; or the code of an error."""
        size: int = self._library.ZSTD_decompressDCtx(
            self._context, _address(target), len(target), _address(source), len(source)
        )
        return size


def _address(data: Bytes) -> int:
    address: int = data.__array_interface__["data"][0]
    return address
