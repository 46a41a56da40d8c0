"""How many bytes a directory holds, counted by all processes that use it, without a common lock.

Each process writes a file of its own: the bytes that it has added, less those that it removed. The
sum of all files is the total. A process counts before it writes and after it deletes, so that a
kill makes the total too large at worst, never too small.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
import threading
import weakref

from shardstream.storage.block_files import names_in

__all__ = ["Ledger"]

_NUMBER = struct.Struct("<q")
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Ledger:
    """The total, and this process's part of it; may be used by many threads.

    A file is locked for as long as its process lives. What dead processes have counted is taken
    over by whoever opens the directory next. `folder` is an open directory.
    """

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._peers: dict[str, int] = {}  # the others' files, open
        self._own: list[int] = []  # this process's file, open
        self._value = 0
        self._create()
        weakref.finalize(self, _close, self._peers, self._own).atexit = False
        self._take_over()

    def _create(self) -> None:
        self.name = secrets.token_hex(8)
        file = os.open(self.name, _OPEN | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder)
        self._own.append(file)
        _lock(file)

    def add(self, count: int) -> None:
        """Count bytes that are about to be written, or less than zero for those just deleted."""
        with self._lock:
            self._value += count
            if not os.fstat(self._own[0]).st_nlink:
                # Where locks do nothing, another process took this one for dead, and its count over.
                self._value = count
                os.close(self._own.pop())
                self._create()
            os.pwrite(self._own[0], _NUMBER.pack(self._value), 0)

    def total(self) -> int:
        """The bytes that all processes, living and dead, have counted."""
        with self._lock:
            names = set(names_in(self._folder)) - {self.name}
            for name in self._peers.keys() - names:
                os.close(self._peers.pop(name))
            total = self._value
            for name in names:
                with contextlib.suppress(OSError):
                    if name not in self._peers:
                        self._peers[name] = os.open(name, _OPEN, dir_fd=self._folder)
                    total += _read(self._peers[name])
            return total

    def processes(self) -> list[str]:
        """The names of all files: of the processes that live, and of those not yet taken over."""
        return names_in(self._folder)

    def _take_over(self) -> None:
        for name in names_in(self._folder):
            if name == self.name:
                continue
            with contextlib.suppress(OSError):
                file = os.open(name, _OPEN, dir_fd=self._folder)
                try:
                    if _lock(file) and os.fstat(file).st_nlink:
                        self.add(_read(file))
                        os.unlink(name, dir_fd=self._folder)
                finally:
                    os.close(file)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: see `add`
    return True


def _read(file: int) -> int:
    data = os.pread(file, _NUMBER.size, 0)
    return int(_NUMBER.unpack(data)[0]) if len(data) == _NUMBER.size else 0


def _close(peers: dict[str, int], own: list[int]) -> None:
    for file in (*peers.values(), *own):
        with contextlib.suppress(OSError):
            os.close(file)
