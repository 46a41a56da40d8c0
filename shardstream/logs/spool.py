"""The spool: segments on a disk or in a tmpfs of this machine, from the first row until they are uploaded."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import stat
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence

import xxhash

from shardstream.counters.layout import slot
from shardstream.counters.recorder import add, put
from shardstream.errors import StorageError
from shardstream.logs.rows import MARK, encode
from shardstream.logs.segments import Segment
from shardstream.storage.store import redact

__all__ = ["MOST", "Spool", "folders_for"]

_ROWS, _DROPPED, _WAITING = slot("log_rows"), slot("log_dropped"), slot("log_waiting_bytes")
_PAUSE = 1.0  # seconds without a try after no folder has taken a row: each try costs the caller time
MOST = 256  # own segments, and segments of others, at a time: each is an open file
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


def folders_for(url: str, spool: str) -> list[str]:
    """Where the segments of a log lie: in `spool`, or else in the system's temporary folder.

    All ranks of a log, and all its later runs, have the same folders on a machine.
    """
    name = xxhash.xxh3_128_hexdigest(redact(url).rstrip("/").encode())  # "run" and "run/" are one place
    places = dict.fromkeys(os.path.realpath(place) for place in (spool, tempfile.gettempdir()))
    return [os.path.join(place, f"shardstream-logs-{os.geteuid()}", name) for place in places]


class Spool:
    """Segments that take rows from any thread, and give them to one thread that uploads them.

    Args:
        folders: Where the segments lie, the best place first. The next one is used if a place takes no row.
        rank: The rank whose rows these are.
        segment_size: Bytes after which a segment is sealed. A longer row is dropped.
        limit: Bytes that segments take at most. Beyond that, the oldest are dropped.

    Attributes:
        rows: How many rows were added.
        dropped: How many rows are not in the log: the spool was full or took no row, or a row was not whole.
        cut: How many of the dropped rows were not whole: a kill has cut them in another process.
        unsaid: How many of the dropped rows no row of the log tells yet.
        left: How many rows were left to the next process.
        trouble: Why a folder takes no rows; "" if none is known. It is said elsewhere: whoever adds a row may
            hold the locks of a logging handler.
        wakeups: Gets an item for each segment that is sealed, and for trouble.

    Raises:
        StorageError: No folder takes a file.
    """

    def __init__(self, folders: Sequence[str], rank: int, segment_size: int, limit: int) -> None:
        self._folders, self._rank = folders, rank
        self._segment_size, self._limit = segment_size, limit
        self.after_fork()
        failures = [self._opened(folder) for folder in folders]
        if not self._own:
            told = "; ".join(f"{folder}: {error}" for folder, error in zip(folders, failures, strict=True))
            raise StorageError(
                f"no folder for the rows of the log: {told}. Give another one: ss.Log(url, spool=...)"
            )

    def after_fork(self) -> None:
        """Begin anew in a forked process: the segments are those of the parent."""
        for segment in (*getattr(self, "_own", ()), *getattr(self, "_adopted", ())):
            segment.close()
        # Rows may come from a signal handler or a destructor, while the same thread adds one: so the lock and
        # the queue can be taken again, and between two lines of code there may be other segments.
        self._lock = threading.RLock()
        self.wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._own: deque[Segment] = deque()  # the last one takes rows, unless it is sealed
        self._adopted: deque[Segment] = deque()
        self.rows = self.dropped = self.cut = self.left = self.unsaid = 0
        self.trouble = self._reason = ""
        self._told = (0, 0)  # rows and dropped ones that the process has counted
        self._again = 0.0
        self._error: OSError | None = None

    def append(self, line: bytes) -> None:
        """Add a row; whatever happens to it, this returns soon and raises nothing."""
        with self._lock:
            self.rows += 1
            if self.unsaid:
                self._say()
            if len(line) > self._segment_size:
                self._count(1, f"a row has {len(line)} bytes, {self._segment_size} are allowed")
            elif not self._added(line):
                why = "" if self._error is None else f": {self._error.strerror or self._error}"
                self._count(1, f"the spool takes no rows{why}")

    def _added(self, line: bytes) -> bool:
        if self._own and not self._own[-1].sealed and self._written(line):
            return True
        if time.monotonic() < self._again:
            return False
        while True:
            for folder in self._folders:
                if self._opened(folder) is None and self._written(line):
                    return True
            no_files = self._error is not None and self._error.errno in _NO_DESCRIPTORS
            if no_files or not self._drop_oldest("the spool's disk is full"):
                self._again = time.monotonic() + _PAUSE
                return False

    def _written(self, line: bytes) -> bool:
        segment = self._own[-1]
        try:
            segment.append(line)
        except OSError as error:
            self._seal()
            self._note(os.path.dirname(segment.path), error)
            return False
        # Many small segments would take all descriptors of the process while the store is away.
        least = self._limit * 2 // MOST if len(self._own) > MOST // 2 else 0
        if segment.size >= max(self._segment_size, least):
            self._seal()
        return True

    def _opened(self, folder: str) -> str | None:
        """Begin a segment in a folder, unless there is one that takes rows; says why it cannot be."""
        if self._own and not self._own[-1].sealed:
            return None
        for _ in range(3):  # another process may delete the empty folder meanwhile
            try:
                _make_private(folder)
                self._own.append(Segment.create(folder, self._rank))
                for other in list(self._own)[:-1]:
                    other.sealed = True  # a signal handler may have begun one meanwhile
                return None
            except FileNotFoundError as error:
                failure: OSError = error
            except OSError as error:
                failure = error
                break
        return self._note(folder, failure)

    def _note(self, folder: str, error: OSError) -> str:
        reason, self._error = error.strerror or str(error), error
        if not self.trouble:
            self.trouble = f"{folder}: {reason}: rows of the log go to another folder, or are dropped"
            self.wakeups.put(None)
        return reason

    def seal(self) -> None:
        """Let the segment that takes rows be uploaded, if it has any."""
        with self._lock:
            if self.unsaid:
                self._say()
            self._seal()

    def _seal(self) -> None:
        if not self._own or self._own[-1].sealed:
            return
        last = self._own[-1]
        last.sealed = True
        if not last.rows and not last.counted():
            self._forget(last)
            last.delete()
            return
        while self._space() > self._limit and self._drop_oldest("the spool is full"):
            pass
        self.wakeups.put(None)

    def _space(self) -> int:
        return sum(segment.space for segment in (*self._adopted, *self._own))

    def _drop_oldest(self, why: str) -> bool:
        for segment in self.waiting():
            if not segment.busy and self._forget(segment):
                segment.delete()
                segment.finished.set()
                self._count(segment.rows, why)
                return True
        return False

    def _forget(self, segment: Segment) -> bool:
        for segments in (self._adopted, self._own):
            with contextlib.suppress(ValueError):
                segments.remove(segment)
                return True
        return False

    def _count(self, rows: int, why: str) -> None:
        self.dropped += rows
        self.unsaid += rows
        self._reason = why

    def _say(self) -> None:
        """Write a row that says how many rows were dropped."""
        rows, self.unsaid = self.unsaid, 0
        row = {"time": time.time(), "rank": self._rank, MARK: "dropped", "rows": rows}
        if not self._added(encode(row | {"total": self.dropped, "reason": self._reason})):
            self.unsaid += rows

    def tell_process(self) -> None:
        """Count for the process what came since the last call: not for each row, which takes microseconds."""
        with self._lock:
            rows, dropped = self._told
            self._told = self.rows, self.dropped
            add(_ROWS, self.rows - rows)
            add(_DROPPED, self.dropped - dropped)
            put(_WAITING, self._space())

    def age(self) -> float:
        """Seconds since the first row of the segment that takes rows; 0 if it has none."""
        with self._lock:
            last = self._own[-1] if self._own else None
            return 0.0 if last is None or last.sealed or not last.rows else time.monotonic() - last.began

    def adopt(self) -> None:
        """Take over the segments that ended processes have left."""
        for folder in self._folders:
            with contextlib.suppress(OSError):
                for name in sorted(os.listdir(folder), key=lambda name: name.partition(".")[2]):
                    if len(self._adopted) < MOST:
                        self._adopt(folder, name)

    def _adopt(self, folder: str, name: str) -> None:
        with contextlib.suppress(OSError):
            segment = Segment.adopt(folder, name)
            if segment is None:
                return
            with self._lock:
                if segment.cut:
                    self.dropped += 1  # its own segment says so
                    self.cut += 1
                if segment.rows:
                    self._adopted.append(segment)
                    return
            segment.delete()

    def next(self) -> Segment | None:
        """The oldest segment that is to be uploaded, which is then busy; None if there is none."""
        with self._lock:
            for segment in self.waiting():
                segment.busy = True
                return segment
        return None

    def waiting(self) -> list[Segment]:
        """The segments that take no rows any more, the oldest first."""
        with self._lock:
            return [segment for segment in (*self._adopted, *self._own) if segment.sealed]

    def done(self, segment: Segment) -> None:
        """Delete a segment that is uploaded."""
        with self._lock:
            self._forget(segment)
        segment.delete()
        segment.finished.set()

    def close(self) -> None:
        """Leave the segments that are not uploaded to the next process."""
        with self._lock:
            self._seal()
            for segment in self.waiting():
                if not segment.busy and self._forget(segment):
                    self.left += segment.rows
                    segment.close()
            for folder in self._folders:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)  # if it is empty


def _make_private(folder: str) -> None:
    """Make a folder that only this user can read, in a place that others may write to."""
    parent = os.path.dirname(folder)
    place = os.path.dirname(parent)
    if not place.startswith("/dev/"):  # there it would be on a disk, and not the tmpfs that is missing
        os.makedirs(place, exist_ok=True)
    for each in (parent, folder):
        with contextlib.suppress(FileExistsError):
            os.mkdir(each, 0o700)
        found = os.stat(each, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "it belongs to somebody else, or others have access to it")
