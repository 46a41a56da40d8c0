"""Writing behind: puts blocks on the SSD while their readers go on."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from shardstream.storage.claims import Claim

__all__ = ["WriteBehind"]

log = logging.getLogger("shardstream.cache")

_QUEUE = 256 << 20  # bytes that may wait to be written
_SKIPPED = 1024  # most blocks that are not written after one could not be


class _Write(NamedTuple):
    size: int
    run: Callable[[], None]
    claim: Claim | None


class WriteBehind:
    """A queue, and a thread that ends when there is nothing left to write; for many threads.

    What fails is one warning in the log, which begins with `where`; then some blocks are not taken.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self.queued = 0  # bytes
        self._idle = threading.Condition()
        self._queue: deque[_Write] = deque()
        self._writing = self._warned = False
        self._failures = self._skip = 0

    def put(self, size: int, run: Callable[[], None], claim: Claim | None, wait: float) -> bool:
        """Take what writes a block of `size` bytes, and its claim until then; False if it is not taken.

        wait: seconds to wait for a place in the queue, where it is full.
        """
        with self._idle:
            taken = self._skip <= 0
            if taken and self.queued + size > _QUEUE and self._queue:
                taken = self._idle.wait_for(lambda: self.queued + size <= _QUEUE, wait)
            if not taken:
                self._skip -= 1
                return False
            self._queue.append(_Write(size, run, claim))
            self.queued += size
            if not self._writing:
                try:
                    threading.Thread(target=self._work, name="shardstream-cache", daemon=True).start()
                    self._writing = True
                except RuntimeError:  # the interpreter is about to end
                    self.queued -= self._queue.pop().size
                    return False
            return True

    def flush(self, wait: float) -> bool:
        """Wait until all is written; whether it was in time."""
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
            except Exception as error:  # noqa: BLE001  # whatever it is, delivery goes on without the SSD
                self._failed(error)
            finally:
                if write.claim is not None:
                    write.claim.release()
                with self._idle:
                    self.queued -= write.size
                    self._idle.notify_all()

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        with self._idle:
            self._skip = min(2**self._failures, _SKIPPED)
        if not self._warned:
            self._warned = True
            reason = getattr(error, "strerror", None) or repr(error)
            log.warning("%s: writing fails, the store is read instead: %s", self._where, reason)
