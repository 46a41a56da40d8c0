"""How many bytes a directory has, counted by all processes that use it, without a common lock.

Each process has a file of its own with one number: the bytes that it has added, less the bytes that it
removed. The sum of all files is the total. A process counts before it writes and after it deletes. So a kill
can make the total too large, and never too small.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
import threading

from shardstream.memory import when_dropped
from shardstream.storage.cache.entries import names_in

__all__ = ["Usage"]

_NUMBER = struct.Struct("<q")
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Usage:
    """The total, and this process's part of it; may be used by many threads.

    The file of a process is locked as long as the process lives. The next process that opens the directory
    takes over the numbers of dead processes.

    Args:
        folder: The open directory of the files.
    """

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._peers: dict[str, int] = {}  # the open files of other processes
        self._own: list[int] = []  # the open file of this process
        self._value = 0
        self._create()
        when_dropped(self, _close, self._peers, self._own)
        self._take_over()

    def _create(self) -> None:
        self.name = secrets.token_hex(8)
        file = os.open(self.name, _OPEN | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder)
        self._own.append(file)
        _lock(file)

    def add(self, count: int) -> None:
        """Count bytes that are about to be written; a negative number for bytes that were just deleted."""
        with self._lock:
            self._value += count
            if not os.fstat(self._own[0]).st_nlink:
                # On a file system without locks: another process took this one for dead and took its count
                # over.
                self._value = count
                os.close(self._own.pop())
                self._create()
            os.pwrite(self._own[0], _NUMBER.pack(self._value), 0)

    def total(self) -> int:
        """The bytes that all processes have counted, dead ones included."""
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
        """The names of all files: of processes that live, and of dead ones that nobody took over yet."""
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
