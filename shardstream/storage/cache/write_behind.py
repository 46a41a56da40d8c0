"""Writing behind: puts blocks on the SSD while their readers go on."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from shardstream.memory import Holder, MemoryBudget
from shardstream.storage.cache.locks import FetchLock

__all__ = ["WriteBehind", "queue_room"]

log = logging.getLogger("shardstream.cache")

_PART = 2  # one part in so many of a budget may wait to be written
_LEAST = (
    64 << 20
)  # bytes that may wait, however small a budget is: otherwise its blocks would rarely be written
_SKIPPED = 1024  # blocks at most that are not taken after one could not be written


def queue_room(holder: Holder) -> int:
    """The bytes that may still wait to be written and count in this holder."""
    return max(holder.budget.limit // _PART, _LEAST) - holder.total


class _Write(NamedTuple):
    size: int
    run: Callable[[], None]
    lock: FetchLock | None
    holder: Holder


class WriteBehind:
    """A queue, and a thread that ends when there is nothing left to write; for many threads.

    The first failure, whatever it is, is a warning in the log. After a failure, some blocks are not taken.

    Args:
        where: The beginning of the warning.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self.queued = 0  # bytes
        self._own = MemoryBudget(0).holder("write-behind")  # for blocks of nobody else
        self._idle = threading.Condition()
        self._queue: deque[_Write] = deque()
        self._writing = self._warned = False
        self._failures = self._skip = 0

    def put(
        self,
        size: int,
        run: Callable[[], None],
        lock: FetchLock | None = None,
        wait: float = 0.0,
        holder: Holder | None = None,
    ) -> bool:
        """Put a write into the queue.

        Args:
            size: Bytes of the block.
            run: Writes it.
            lock: The fetch lock of the block, which is released when the block is written.
            wait: Seconds to wait for a place, if the queue is full.
            holder: What counts the bytes until they are written. Its budget limits its part of the queue.

        Returns:
            Whether the block was taken. If not, the lock is still the caller's.
        """
        holder = holder or self._own
        with self._idle:
            taken = self._skip <= 0
            if taken and not self._fits(size, holder):
                taken = self._idle.wait_for(lambda: self._fits(size, holder), wait)
            if not taken:
                self._skip -= 1
                return False
            if not self._writing:
                try:
                    threading.Thread(target=self._work, name="shardstream-write-behind", daemon=True).start()
                    self._writing = True
                except RuntimeError:  # the interpreter is about to end
                    return False
            self._queue.append(_Write(size, run, lock, holder))
            self._count(size, holder)
        holder.budget.make_room()
        return True

    def _fits(self, size: int, holder: Holder) -> bool:
        return not self._queue or size <= queue_room(holder)

    def _count(self, size: int, holder: Holder) -> None:
        self.queued += size
        holder.count(size)

    def flush(self, wait: float) -> bool:
        """Wait until all is written, at most so many seconds; whether it was in time."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._writing, wait)

    def _work(self) -> None:
        while True:
            with self._idle:
                if not self._queue:
                    self._writing = False
                    self._idle.notify_all()
                    return
                write = self._queue.popleft()
            try:
                write.run()
                self._failures = 0
            except BaseException as error:  # noqa: BLE001  # readers go on without the SSD
                self._failed(error)
            finally:
                if write.lock is not None:
                    write.lock.release()
                with self._idle:
                    self._count(-write.size, write.holder)
                    self._idle.notify_all()
                del write  # or the block would stay until the next one comes

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        with self._idle:
            self._skip = min(2**self._failures, _SKIPPED)
        if not self._warned:
            self._warned = True
            reason = getattr(error, "strerror", None) or repr(error)
            # An error that comes from no file system is a fault in this package: the log shows where.
            trace = None if isinstance(error, OSError) else error
            log.warning(
                "%s: writing fails, the store is read instead: %s", self._where, reason, exc_info=trace
            )
