"""Threads that come and go with the work."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from shardstream.storage.waits import Waits, current, working_for

__all__ = ["Crew"]


_LINGER = 0.1  # seconds that a thread waits for more, for starting one takes two turns of the interpreter


class Crew:
    """Threads for tasks that raise nothing: at most `most()`, each ends soon after there is nothing to do.

    A task works for the iterator of who submits it.
    """

    def __init__(self, most: int) -> None:
        self.most: Callable[[], int] = lambda: most
        self._running = self._idle = 0
        self._tasks: deque[tuple[Waits, Callable[[], None]]] = deque()
        self._more = threading.Condition(threading.Lock())

    def submit(self, task: Callable[[], None]) -> None:
        """Run a task soon."""
        with self._more:
            self._tasks.append((current(), task))
            if self._idle >= len(self._tasks):
                self._more.notify()
                return
            if self._running >= self.most():
                return
            self._running += 1
        try:
            threading.Thread(target=self._work, name="shardstream-ahead", daemon=True).start()
        except RuntimeError:  # no more threads: the interpreter is about to end, perhaps
            self._work()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            waits, task = found
            with working_for(waits):
                task()

    def _next(self) -> tuple[Waits, Callable[[], None]] | None:
        """The next task; None for a thread that is to end."""
        with self._more:
            if not self._tasks:
                self._idle += 1
                self._more.wait(_LINGER)
                self._idle -= 1
            if not self._tasks or self._running > self.most():
                self._running -= 1
                return None
            return self._tasks.popleft()
