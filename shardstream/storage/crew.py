"""Threads that come and go with the work."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from shardstream.storage.waits import Waits, current, working_for

__all__ = ["Crew"]


class Crew:
    """Threads for tasks that raise nothing: at most `most()`, each ends when there is nothing to do.

    A task works for the iterator of who submits it.
    """

    def __init__(self, most: int) -> None:
        self.most: Callable[[], int] = lambda: most
        self._running = 0
        self._tasks: deque[tuple[Waits, Callable[[], None]]] = deque()
        self._lock = threading.Lock()

    def submit(self, task: Callable[[], None]) -> None:
        """Run a task soon."""
        with self._lock:
            self._tasks.append((current(), task))
            if self._running >= self.most():
                return
            self._running += 1
        try:
            threading.Thread(target=self._work, name="shardstream-ahead", daemon=True).start()
        except RuntimeError:  # no more threads: the interpreter is about to end, perhaps
            self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._tasks or self._running > self.most():
                    self._running -= 1
                    return
                waits, task = self._tasks.popleft()
            with working_for(waits):
                task()
