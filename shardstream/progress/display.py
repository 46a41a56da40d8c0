"""Shows the progress where a person looks: below the cell of a notebook, in a terminal, or in a log."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import ParamSpec, TypeVar

from shardstream.progress.numbers import Progress, checked
from shardstream.progress.text import in_words

__all__ = ["shown", "with_bar"]

_EVERY = 5.0  # seconds between lines of a log at first
_RARELY = 60.0  # and later, since such a work may take days
P = ParamSpec("P")
R = TypeVar("R")
Show = Callable[[Progress], None]


def with_bar(title: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for functions with the parameter `progress`: True shows the progress while they run.

    Args:
        title: The text before the bar.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # Python's own message says what is wrong
            if checked(given.arguments.get("progress")) is not True:
                return function(*args, **kwargs)
            with shown(title, quiet=False) as callback:
                given.arguments["progress"] = callback
                return function(*given.args, **given.kwargs)

        return run

    return decorate


@contextmanager
def shown(title: str, quiet: bool) -> Iterator[Show | None]:
    """Show the progress of an operation on stderr, or below the cell of a notebook.

    A notebook gets a bar that is updated in place, and so does a terminal. A log or a pipe gets a line every
    5 seconds in the first minute, and later one every minute.

    Args:
        title: The text before the bar.
        quiet: Whether nothing is shown.

    Yields:
        What is called with the progress, by any thread; None if `quiet`.
    """
    if quiet:
        yield None
        return
    with _place(title) as show:
        yield show


def _place(title: str) -> AbstractContextManager[Show]:
    if (ipython := sys.modules.get("IPython")) is not None:
        from shardstream.progress import notebook

        if notebook.is_kernel(ipython):
            return notebook.bar(title)
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        from shardstream.progress import terminal  # here, since rich takes a while to import

        return terminal.bar(title)
    return _lines(title)


@contextmanager
def _lines(title: str) -> Iterator[Show]:
    lock = threading.Lock()
    started = last = time.monotonic()

    def show(now: Progress) -> None:
        nonlocal last
        with lock:
            moment = time.monotonic()
            if moment - last < (_EVERY if moment - started < _RARELY else max(_EVERY, _RARELY)):
                return
            last = moment
            if sys.stderr is None:  # as in a program without a console
                return
            with suppress(OSError, ValueError):  # nobody reads stderr any more: no reason to stop the work
                sys.stderr.write(f"{title}: {in_words(now)}\n")
                sys.stderr.flush()

    yield show
