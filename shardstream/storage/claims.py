"""Claims: who fetches which block, among all processes of a machine.

A claim is one locked byte of one file, at a place that the block's name decides. The lock belongs to
the open file, so it ends with its process. Where locks do nothing, or the file is gone, blocks may
be fetched twice, and nothing worse.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import weakref

import xxhash

__all__ = ["Claim", "Claims"]

_LOCK = struct.Struct("hhqqi4x")  # struct flock


class Claim:
    """The right to fetch a block; `release` may be called once."""

    def __init__(self, claims: Claims, place: int) -> None:
        self._claims, self._place = claims, place

    def release(self) -> None:
        """Let others fetch it, or find it."""
        self._claims.release(self._place)


class Claims:
    """The claims of this process, in an open file that is closed with it; may be used by many threads."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._held: set[int] = set()  # a lock of our own would not keep our other threads out
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, file).atexit = False

    def take(self, name: str) -> Claim | None:
        """A claim, or None while another thread or process holds it."""
        place = xxhash.xxh3_64_intdigest(name.encode()) >> 2
        with self._lock:
            if place in self._held or not self._locked(fcntl.F_WRLCK, place):
                return None
            self._held.add(place)
        return Claim(self, place)

    def release(self, place: int) -> None:
        """End a claim."""
        with self._lock:
            self._held.discard(place)
            self._locked(fcntl.F_UNLCK, place)

    def _locked(self, kind: int, place: int) -> bool:
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, place, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            pass
        return True
