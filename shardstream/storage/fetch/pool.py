"""Threads that start when there is work, and end soon after it."""

from __future__ import annotations

import logging
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
    """

    def __init__(self, most: int) -> None:
        self.most: Callable[[], int] = lambda: most
        self._running = self._idle = 0
        self._tasks: deque[tuple[CancelScope, Callable[[], None]]] = deque()
        # The lock is taken itself, not by its condition: that one keeps it if Ctrl-C comes meanwhile.
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)

    def submit(self, task: Callable[[], None]) -> None:
        """Run a task soon."""
        with self._lock:
            self._tasks.append((current(), task))
            if self._idle >= len(self._tasks):
                self._more.notify()
                return
            if self._running >= self.most():
                return
            self._running += 1
        try:
            threading.Thread(target=self._work, name="shardstream-ahead", daemon=True).start()
        except RuntimeError:  # no more threads: perhaps the interpreter is about to end
            self._work()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            scope, task = found
            try:
                with working_for(scope):
                    task()
            except BaseException:
                log.exception("a task that works ahead has failed")
            del found, scope, task  # or what they refer to would stay until the next task comes

    def _next(self) -> tuple[CancelScope, Callable[[], None]] | None:
        """The next task; None for a thread that is to end."""
        with self._lock:
            found = None
            try:
                if not self._tasks:
                    self._idle += 1
                    self._more.wait(_LINGER)
                    self._idle -= 1
                if self._tasks and self._running <= self.most():
                    found = self._tasks.popleft()
            finally:
                self._running -= found is None  # also if `most` raises
            return found
