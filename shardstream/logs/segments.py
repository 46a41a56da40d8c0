"""A segment: a file of rows in a spool. Its lock says whether the process that writes it is alive."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
import time

from shardstream.logs.rows import MARK, encode

__all__ = ["Segment"]

# The rank, when the segment was begun (nanoseconds, so that names sort by it), a random number; and, as soon
# as it is uploaded, the number of the object.
_NAME = re.compile(r"rank-(\d+)\.(\d{20})-([0-9a-f]{16})(?:\.to-(\d+))?\.jsonl\Z")
_NEW = ".new-"
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_STALE = 60.0  # seconds after which a file without a lock was left by a process that was killed
_PAGE = 4096  # bytes that file systems allocate at a time
_TAIL = 64 << 10  # bytes that are searched at a time for the end of the last whole line


class Segment:
    """A file of whole rows. Made by `create` or `adopt`, which hold its lock.

    Args:
        descriptor: The open, locked file.
        folder: The folder of the spool.
        name: The name of the file in it.

    Attributes:
        rank: The rank whose rows these are.
        target: The number of the object that has been chosen for the rows; None before that.
        size: The bytes of its rows.
        rows: How many rows it has.
        began: When its first row came, in seconds of `time.monotonic`.
        sealed: Whether no row is added any more.
        busy: Whether it is being uploaded.
        finished: Set as soon as it is uploaded or dropped.
        cut: Bytes of a row that was not whole, and was cut when the segment was adopted.
    """

    cut = 0

    def __init__(self, descriptor: int, folder: str, name: str) -> None:
        match = _NAME.match(name)
        assert match is not None
        self.rank = int(match[1])
        self.target = None if match[4] is None else int(match[4])
        self.size = self.rows = 0
        self.began = 0.0
        self.sealed = self.busy = False
        self.finished = threading.Event()
        self._descriptor, self._folder, self._name = descriptor, folder, name

    @classmethod
    def create(cls, folder: str, rank: int) -> Segment:
        """A new, empty segment.

        Raises:
            OSError: There can be no file, or no lock on it.
        """
        name = f"rank-{rank}.{_later():020d}-{os.urandom(8).hex()}.jsonl"
        # It gets its name once it is locked: without the lock, others would take it for one that was left.
        new = os.path.join(folder, _NEW + name)
        descriptor = os.open(new, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(new, os.path.join(folder, name))
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise
        return cls(descriptor, folder, name)

    @classmethod
    def adopt(cls, folder: str, name: str) -> Segment | None:
        """A segment that a process has left when it ended. Its last row is cut if it is not whole.

        Returns:
            The segment, sealed and locked; None if the file is no segment, or a living process has it.
        """
        match = _NAME.match(name)
        if match is None:
            if name.startswith(_NEW):
                _delete_stale(os.path.join(folder, name))
            return None
        descriptor = _locked(os.path.join(folder, name))
        if descriptor is None:
            return None
        segment = cls(descriptor, folder, name)
        try:
            segment._take_over()
        except BaseException:
            segment.close()
            raise
        return segment

    def _take_over(self) -> None:
        self.sealed = True
        # The same bytes whoever adopts it, and whenever: an upload is recognised by them.
        changed = os.fstat(self._descriptor).st_mtime
        self.cut = self._cut()
        if self.cut:
            row = {"time": changed, "rank": self.rank, MARK: "cut", "bytes": self.cut}
            with contextlib.suppress(OSError):
                os.write(self._descriptor, encode(row))
            self._cut()
        self.counted()

    @property
    def space(self) -> int:
        """The bytes that the file takes."""
        return max(1, -(-self.size // _PAGE)) * _PAGE

    @property
    def path(self) -> str:
        """Where the file is."""
        return os.path.join(self._folder, self._name)

    def append(self, line: bytes) -> int:
        """Add a row, by one call of the system.

        Returns:
            The bytes of all its rows.

        Raises:
            OSError: The row cannot be written; nothing of it is there.
        """
        written = os.write(self._descriptor, line)
        if written != len(line):
            self._cut()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not self.rows:
            self.began = time.monotonic()
        self.rows += 1
        self.size += written
        return self.size

    def counted(self) -> int:
        """Count the rows anew, by the file: an interrupt may have come after a row was written.

        Returns:
            How many rows it has.
        """
        data = self.read()
        self.size, self.rows = len(data), data.count(b"\n")
        return self.rows

    def _cut(self) -> int:
        """Cut what comes after the last whole row; how many bytes that were.

        The file says where that is: an interrupt may have come before a row was counted.
        """
        size = end = os.fstat(self._descriptor).st_size
        while end > 0:
            start = max(0, end - _TAIL)
            found = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            end = start + found + 1
            if found >= 0:
                break
        if end < size:
            os.ftruncate(self._descriptor, end)
        return size - end

    def read(self) -> bytes:
        """All its rows."""
        size = os.fstat(self._descriptor).st_size
        data = os.pread(self._descriptor, size, 0)
        return data[: data.rfind(b"\n") + 1]

    def aim(self, target: int) -> None:
        """Note the number of the object in the file's name.

        If this process is killed after the upload, the next one finds the object under this number, and does
        not upload the rows again.
        """
        name = f"{self._name.partition('.jsonl')[0].partition('.to-')[0]}.to-{target}.jsonl"
        self.target = target
        with contextlib.suppress(OSError):  # somebody has emptied the folder: the file is still open
            os.rename(self.path, os.path.join(self._folder, name))
            self._name = name

    def delete(self) -> None:
        """Delete the file: its rows are uploaded or dropped."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Leave the file to other processes. A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


_latest = 0


def _later() -> int:
    """Nanoseconds since 1970, or more: a clock that is set back does not change the order of segments."""
    global _latest
    _latest = max(time.time_ns(), _latest + 1)
    return _latest


def _locked(path: str) -> int | None:
    """A descriptor of a file that no living process has locked; None if there is no such file."""
    try:
        descriptor = os.open(path, _FLAGS | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have uploaded or renamed it meanwhile.
            if os.path.samestat(found, os.stat(path, follow_symlinks=False)):
                return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _delete_stale(path: str) -> None:
    with contextlib.suppress(OSError):
        if time.time() - os.stat(path, follow_symlinks=False).st_mtime > _STALE:
            descriptor = _locked(path)
            if descriptor is not None:
                os.unlink(path)
                os.close(descriptor)
