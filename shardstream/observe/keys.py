"""Keys that a user presses while a view is shown, one at a time, without an echo."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator

__all__ = ["keys"]

_KEY = re.compile(rb"\x1b[O\[]([A-Z])|(.)", re.DOTALL)
_ARROWS = {b"A": "up", b"B": "down"}


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """A function that waits up to some seconds for a key, and gives its name; "" if none was pressed.

    Names are the letter itself, "up" and "down". Without a terminal as standard input there are no keys, and
    the function sleeps.
    """
    try:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (AttributeError, ValueError, OSError, termios.error):
        yield _no_key
        return
    try:
        tty.setcbreak(terminal, termios.TCSANOW)
        now = termios.tcgetattr(terminal)
        # Ctrl-Z would leave the shell on the screen of the view, without an echo.
        now[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(terminal, termios.TCSANOW, now)
        typed: deque[str] = deque()
        yield lambda seconds: _key(terminal, typed, seconds)
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _key(terminal: int, typed: deque[str], seconds: float) -> str:
    if not typed:
        if not select.select([terminal], [], [], seconds)[0]:
            return ""
        pressed = os.read(terminal, 64)
        if not pressed:  # the terminal is gone
            return "q"
        # Keys that were pressed fast come together.
        for arrow, letter in _KEY.findall(pressed):
            typed.append(_ARROWS.get(arrow, "") or letter.decode("latin-1"))
    return typed.popleft()
