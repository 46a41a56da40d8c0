"""Decompresses frames into buffers, with one zstd context for each thread.

Whole frames are decompressed by the zstd library of the system, if it has a good one. `zstandard`
decompresses the beginnings of frames, and all frames on other systems.
"""

from __future__ import annotations

import threading
import time

import zstandard

from shardstream.counters.layout import stage
from shardstream.errors import CorruptionError
from shardstream.format.frames import WINDOW_LOG_MAX, check_size, damaged
from shardstream.read.buffers import Buffer, BufferPool
from shardstream.read.system_zstd import SystemZstd, library
from shardstream.storage.cancellation import current

__all__ = ["Decompressor"]

_DECOMPRESS = stage("decompress")


class Decompressor:
    """Decompresses zstd frames into buffers of a pool, for many threads.

    Args:
        pool: Where buffers come from.
    """

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._local = threading.local()

    def frame(self, stored: bytes | memoryview, raw_size: int, where: str, room: int = 0) -> Buffer:
        """The content of a zstd frame, at the start of a buffer.

        Args:
            stored: The compressed bytes.
            raw_size: How many bytes the content has to have.
            where: The frame, for messages.
            room: How many more bytes the buffer has, behind the content.

        Raises:
            CorruptionError: The frame is damaged, or its content has another size.
        """
        check_size(stored, raw_size, where)
        buffer = self._pool.take(raw_size + room)
        try:
            self._fill(stored, buffer[:raw_size].data, where, self._system())
        except BaseException:
            self._pool.give_back(buffer)
            raise
        return buffer

    def start_of(self, stored: bytes | memoryview, into: memoryview, where: str) -> None:
        """Fill `into` with the first bytes of a zstd frame. The rest is not decompressed.

        Raises:
            CorruptionError: The frame is damaged, or has fewer bytes.
        """
        self._fill(stored, into, where, None)

    def _fill(
        self, stored: bytes | memoryview, into: memoryview, where: str, system: SystemZstd | None
    ) -> None:
        """Fill `into`; by the library of the system, if it is given, with all that is stored."""
        started, filled = time.monotonic(), 0
        try:
            if not len(into):
                pass
            elif system is not None:
                filled = system.fill(stored, into)
            else:
                filled = self._context().stream_reader(stored, read_across_frames=True).readinto(into)
        except zstandard.ZstdError as error:
            raise CorruptionError(damaged(where, "zstd frame", error)) from error
        current().recorder.span(_DECOMPRESS, started, time.monotonic())
        if filled != len(into):
            raise CorruptionError(f"{where}: {filled} bytes decompressed, {len(into)} expected")

    def _system(self) -> SystemZstd | None:
        """This thread's context of the system's library; None if there is no such library."""
        found = library()
        if found is None:
            return None
        context: SystemZstd | None = getattr(self._local, "system", None)
        if context is None:
            context = self._local.system = SystemZstd(found)
        return context

    def _context(self) -> zstandard.ZstdDecompressor:
        # An instance must not be shared between threads.
        context: zstandard.ZstdDecompressor | None = getattr(self._local, "context", None)
        if context is None:
            context = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX)
            self._local.context = context
        return context
