"""Threads that start when there is work, and end soon after it."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Callable

from shardstream.storage.cancellation import CancelScope, current, working_for

__all__ = ["ElasticPool"]


log = logging.getLogger("shardstream")

_LINGER = 0.1  # seconds that a thread waits for more, for starting one takes two turns of the interpreter


class ElasticPool:
    """Threads for tasks. A thread ends soon after there is nothing to do.

    A task works for the iterator of the thread that submits it. A task tells its errors to the threads that
    wait for it. If it raises one nevertheless, the log has the error, and the thread goes on.

    Args:
        most: How many threads there are at most. It may be replaced by another function at any time.
        most_bytes: No task begins while those at work have so many bytes, unless they are few.
        few: So many tasks are few.
    """

    def __init__(self, most: int, most_bytes: float = math.inf, few: int = 0) -> None:
        self.most: Callable[[], int] = lambda: most
        self._most_bytes, self._few = most_bytes, few
        self._running = self._idle = self._busy = self._bytes = 0
        self._tasks: deque[tuple[CancelScope, Callable[[], None], int]] = deque()
        # The lock is taken itself, not by its condition: that one keeps it if Ctrl-C comes meanwhile.
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)

    def submit(self, task: Callable[[], None], size: int = 0) -> None:
        """Run a task of so many bytes soon."""
        with self._lock:
            self._tasks.append((current(), task, size))
            if self._idle >= len(self._tasks):
                self._more.notify()
                return
        try:
            self._grow()
        except RuntimeError:  # no more threads: perhaps the interpreter is about to end
            with self._lock:
                self._running += 1
            self._work()

    def _grow(self) -> None:
        """Start a thread if there is something to do for it."""
        with self._lock:
            if self._idle >= len(self._tasks) or self._running >= self.most() or not self._begins:
                return
            self._running += 1
        try:
            threading.Thread(target=self._work, name="shardstream-ahead", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._running -= 1
            raise

    @property
    def _begins(self) -> bool:
        """Whether the next task may begin, as far as its bytes matter."""
        return self._bytes < self._most_bytes or self._busy < self._few

    def _work(self) -> None:
        while (found := self._next()) is not None:
            scope, task, size = found
            try:
                # A large task may have held back several small ones. Whatever fails here, this task is done.
                with contextlib.suppress(Exception):
                    self._grow()
                with working_for(scope):
                    task()
            except BaseException:
                log.exception("a task that works ahead has failed")
            finally:
                with self._lock:
                    self._busy -= 1
                    self._bytes -= size
            del found, scope, task  # or what they refer to would stay until the next task comes

    def _next(self) -> tuple[CancelScope, Callable[[], None], int] | None:
        """The next task; None for a thread that is to end."""
        with self._lock:
            found = None
            try:
                if not self._tasks:
                    self._idle += 1
                    self._more.wait(_LINGER)
                    self._idle -= 1
                if self._tasks and self._running <= self.most() and self._begins:
                    found = self._tasks.popleft()
                    self._busy += 1
                    self._bytes += found[2]
            finally:
                self._running -= found is None  # also if `most` raises
            return found
