"""Frames to buffers: contexts per thread, and memory that is used again.

Fresh memory for every frame costs a page fault per 4 KiB; a frame that is done gives its buffer back.
"""

from __future__ import annotations

import threading

import numpy as np
import zstandard
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.format.frames import WINDOW_LOG_MAX, check_size

__all__ = ["Buffer", "Decompressor"]

Buffer = NDArray[np.uint8]
_STEP = 1 << 16
_IDLE = 256 << 20  # bytes: the frames that a shuffle of 64 lanes has open, kept from epoch to epoch


class Decompressor:
    """Decompresses zstd frames into recycled buffers; may be used by many threads."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._free: dict[int, list[Buffer]] = {}
        self._idle = 0

    def buffer(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes, its content undefined."""
        capacity = -(-size // _STEP) * _STEP
        with self._lock:
            free = self._free.get(capacity)
            if free:
                self._idle -= capacity
                return free.pop()
        return np.empty(capacity, np.uint8)

    def give_back(self, buffer: Buffer) -> None:
        """Let a buffer of `buffer()` be used again: nobody may look at it any more."""
        with self._lock:
            if self._idle + len(buffer) <= _IDLE:
                self._free.setdefault(len(buffer), []).append(buffer)
                self._idle += len(buffer)

    def frame(self, stored: bytes | memoryview, raw_size: int, where: str, room: int = 0) -> Buffer:
        """The `raw_size` bytes of a zstd frame, at the start of a buffer with `room` bytes more."""
        check_size(stored, raw_size, where)
        buffer = self.buffer(raw_size + room)
        try:
            self.start_of(stored, buffer[:raw_size].data, where)
        except BaseException:
            self.give_back(buffer)
            raise
        return buffer

    def start_of(self, stored: bytes | memoryview, into: memoryview, where: str) -> None:
        """Fill `into` with the first bytes of a zstd frame; no more than those is decompressed."""
        try:
            filled = self._context().stream_reader(stored).readinto(into) if len(into) else 0
        except zstandard.ZstdError as error:
            raise CorruptionError(f"{where}: the zstd frame is damaged ({error})") from error
        if filled != len(into):
            raise CorruptionError(f"{where}: {filled} bytes decompressed, {len(into)} expected")

    def _context(self) -> zstandard.ZstdDecompressor:
        # An instance must not be shared between threads.
        context: zstandard.ZstdDecompressor | None = getattr(self._local, "context", None)
        if context is None:
            context = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX)
            self._local.context = context
        return context
