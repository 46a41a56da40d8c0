"""Scopes: all that threads wait for on behalf of one iterator is given up when it is closed or dropped."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from shardstream.counters.recorder import NO_LOADER, Recorder

__all__ = ["CancelScope", "Cancelled", "IdleThreads", "current", "work_for", "working_for"]

T = TypeVar("T")


class Cancelled(BaseException):
    """The iterator that a thread works for has ended. It is no error, and nobody catches it on the way."""


class IdleThreads(Protocol):
    """Threads that work for the same iterator."""

    def offer(self, call: Callable[[], object], /) -> bool:
        """Let a thread that has nothing to do call this soon; False if all are busy."""


class CancelScope:
    """The requests of one iterator that are on their way. May be used by many threads.

    The garbage collector may end it at any moment, in any thread. So there is no lock: each side makes its
    own step before it looks at the step of the other side.

    Attributes:
        met: What the work met that is to be counted: each time the name of a counter of the loader.
        recorder: Where the work is counted and timed.
    """

    def __init__(self) -> None:
        self.over = False
        self.recorder: Recorder = NO_LOADER
        self.met: deque[str] = deque()
        self.idle_threads: IdleThreads | None = None
        self._process = os.getpid()
        self._futures: set[Future[Any]] = set()

    def end(self) -> None:
        """Cancel the requests, and all that follow."""
        if self._process != os.getpid():  # after a fork: the requests are the parent's
            return
        self.over = True
        for future in tuple(self._futures):
            future.cancel()

    def result(self, future: Future[T], seconds: float) -> T:
        """`future.result(seconds)`. Nobody else may need the future.

        Raises:
            CancelledError: The scope has ended.
        """
        self._futures.add(future)
        try:
            if self.over:
                future.cancel()
            return future.result(seconds)
        finally:
            self._futures.discard(future)


_of_thread = threading.local()
_ENDLESS = CancelScope()
_ENDLESS.met = deque(maxlen=0)  # there is nobody who counts


def current() -> CancelScope:
    """The scope of the iterator that this thread works for; one that never ends if there is no iterator."""
    found: CancelScope = getattr(_of_thread, "scope", _ENDLESS)
    return found


def work_for(scope: CancelScope) -> None:
    """Let this thread work for an iterator from now on: the initializer of its pools."""
    _of_thread.scope = scope


@contextlib.contextmanager
def working_for(scope: CancelScope) -> Iterator[None]:
    """Let this thread work for an iterator for a while."""
    before = current()
    work_for(scope)
    try:
        yield
    finally:
        work_for(before)
