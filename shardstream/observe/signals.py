"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it has begun is cleaned up."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["ended_by_signal"]


@contextlib.contextmanager
def ended_by_signal() -> Iterator[None]:
    """In this block SIGTERM and SIGHUP raise SystemExit in the main thread, with the code of a shell.

    A signal that the process ignores, as after `nohup`, stays ignored. In other threads nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: handler
        for number in (signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }

    def leave(number: int, _: FrameType | None) -> None:
        for each in before:  # a second one must not end the cleaning up
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: it was not set by Python, and cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
