"""Fetch locks: each block is fetched by one process of a machine at a time.

A fetch lock is one locked byte of one file; the name of the block decides which byte. The lock belongs to the
open file, so it ends with its process. If the file system has no locks, or the file was deleted, a block may
be fetched twice, and nothing worse happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading

import xxhash

from shardstream.memory import when_dropped

__all__ = ["FetchLock", "FetchLocks"]

_LOCK = struct.Struct("hhqqi4x")  # struct flock


class FetchLock:
    """The right to fetch a block."""

    def __init__(self, locks: FetchLocks, place: int) -> None:
        self._locks, self._place = locks, [place]

    def release(self) -> None:
        """Let others fetch the block, or find it. A second call does nothing: others may have the lock."""
        with contextlib.suppress(IndexError):
            self._locks.release(self._place.pop())


class FetchLocks:
    """The fetch locks of this process; may be used by many threads.

    Args:
        file: The open file that has the locks. It is closed when this object is dropped.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._taken: set[int] = set()  # a lock of the file does not stop the other threads of this process
        self._lock = threading.Lock()
        when_dropped(self, os.close, file)

    def take(self, name: str) -> FetchLock | None:
        """The lock of this name; None while another thread or process has it."""
        place = xxhash.xxh3_64_intdigest(name.encode()) >> 2
        with self._lock:
            if place in self._taken or not self._locked(fcntl.F_WRLCK, place):
                return None
            self._taken.add(place)
        return FetchLock(self, place)

    def release(self, place: int) -> None:
        """End a lock."""
        with self._lock:
            self._taken.discard(place)
            self._locked(fcntl.F_UNLCK, place)

    def _locked(self, kind: int, place: int) -> bool:
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, place, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            pass
        return True
