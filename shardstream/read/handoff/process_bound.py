"""Iterators that belong to one process, and end silently when the process does.

After a fork the child has the memory of the iterator, but not its threads, and its sockets belong to the
parent. At the end of a program the threads must end before Python unloads its modules.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # imported first, so that its hook at the exit runs after the hook here
import ctypes
import os
import threading
import weakref
from collections.abc import Generator, Iterator
from typing import Any, Protocol, TypeVar

from shardstream.errors import OptionError

__all__ = ["ProcessBound", "leak"]

T = TypeVar("T")
_OVER = "the program is at its end: its iterations are closed"
C = TypeVar("C", covariant=True)


class _Closable(Protocol[C]):
    def __iter__(self) -> Iterator[C]: ...
    def __next__(self) -> C: ...
    def close(self) -> None: ...


class ProcessBound(Iterator[T]):
    """The items of a generator, only for the process that began it.

    Args:
        made: The generator.
        patience: Seconds at most that the end of the program waits for a thread that is in the generator.
            It has to wait if that thread may be in C++ code. Python would stop the thread when it comes back,
            and C++ aborts the process for that.
    """

    def __init__(self, made: Generator[T, None, None], patience: float = 0.0) -> None:
        self._patience = patience
        self.hold(made)
        _alive[id(self)] = self

    def hold(self, made: Generator[T, None, None]) -> None:
        """Go on with another generator, which this process has begun."""
        self._made: _Closable[T] = made
        self._thread = threading.current_thread()

    def __next__(self) -> T:
        try:
            if _ending:
                raise OptionError(_OVER)
            # Not `return next(...)`: Python notices an interrupt after a call. Then the position would have
            # moved, and the item would be lost.
            for item in self._made:
                return item
            raise StopIteration
        except BaseException:
            if _ending and threading.current_thread() is not threading.main_thread():
                raise SystemExit from None  # this ends a thread without a message
            raise

    def close(self) -> None:
        """End the iteration."""
        self._made.close()

    def disown(self) -> None:
        """Let go of the generator without ending it: this process is a fork of the one that began it."""
        leak(self._made)
        self._made = _Refused()

    def end(self) -> None:
        """End the iteration at the end of the program."""
        try:
            self._made.close()
            self._made = _Ended()
        except Exception:  # noqa: BLE001 - a thread is in the generator, and gets an error at its next call
            if self._patience and self._thread is not threading.current_thread():
                self._thread.join(self._patience)

    @property
    def busy(self) -> threading.Thread | None:
        """The thread that began the iteration, if it lives and the interpreter is going to wait for it."""
        thread = self._thread
        pooled: Any = getattr(concurrent.futures.thread, "_threads_queues", {})
        mine = thread is not threading.main_thread() and not thread.daemon and thread not in pooled
        return thread if mine and thread.is_alive() else None


class _Refused(Iterator[T]):
    """Takes the place of a generator that belongs to another process."""

    def __next__(self) -> T:
        raise OptionError(
            "this iteration was begun by another process, of which this one is a fork, and goes on there: "
            "begin another one here with iter()"
        )

    def close(self) -> None:
        """Do nothing: the generator goes on in the other process."""


class _Ended(Iterator[T]):
    """Takes the place of a generator that was closed at the end of the program: its epoch is not over."""

    def __next__(self) -> T:
        raise OptionError(_OVER)

    def close(self) -> None:
        """Do nothing: the generator is closed."""


def leak(value: object) -> None:
    """Never free an object, not even at the end of the interpreter: that would end a thing of the parent."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


_alive: weakref.WeakValueDictionary[int, ProcessBound[Any]] = weakref.WeakValueDictionary()
_ending: list[bool] = []


def _living() -> list[ProcessBound[Any]]:
    return [found for reference in _alive.valuerefs() if (found := reference()) is not None]


def _after_fork() -> None:
    for owned in _living():
        owned.disown()


def _at_exit() -> None:
    for owned in _living():
        # The interpreter waits for this thread, too, but only after it has ended the pools that the thread
        # needs.
        if (thread := owned.busy) is not None:
            del owned
            thread.join()
    _ending.append(True)
    for owned in _living():
        owned.end()


os.register_at_fork(after_in_child=_after_fork)
# This hook runs before Python joins threads, if Python has such hooks. Hooks of atexit run after that.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)
