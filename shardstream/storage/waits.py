"""What threads wait for on behalf of one iterator, given up as soon as that is closed or dropped."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Waits", "current", "work_for", "working_for"]

T = TypeVar("T")


class Waits:
    """The requests of one iterator that are on their way. May be used by many threads.

    The garbage collector may end it in the midst of anything. So there is no lock: each side makes its own
    step before it looks at the other's.
    """

    def __init__(self) -> None:
        self.over = False
        self._process = os.getpid()
        self._futures: set[Future[Any]] = set()

    def end(self) -> None:
        """Nobody needs anything any more, now or later."""
        if self._process != os.getpid():  # after a fork: the requests are the parent's
            return
        self.over = True
        for future in tuple(self._futures):
            future.cancel()

    def result(self, future: Future[T], seconds: float) -> T:
        """`future.result(seconds)`, CancelledError at the end; nobody else may need the future."""
        self._futures.add(future)
        try:
            if self.over:
                future.cancel()
            return future.result(seconds)
        finally:
            self._futures.discard(future)


_of_thread = threading.local()
_ENDLESS = Waits()


def current() -> Waits:
    """Those of the iterator that this thread works for; if it is none's, they never end."""
    found: Waits = getattr(_of_thread, "waits", _ENDLESS)
    return found


def work_for(waits: Waits) -> None:
    """Let this thread work for an iterator from now on: the initializer of its pools."""
    _of_thread.waits = waits


@contextlib.contextmanager
def working_for(waits: Waits) -> Iterator[None]:
    """Let this thread work for an iterator for a while."""
    before = current()
    work_for(waits)
    try:
        yield
    finally:
        work_for(before)
