"""A bar below the cell of a notebook. It is HTML, needs no widgets, and is updated in place."""

from __future__ import annotations

import html
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from shardstream.progress.numbers import Progress
from shardstream.progress.text import amount, in_words

__all__ = ["bar", "is_kernel"]

_DONE = "done"
_EVERY = 0.2  # seconds between two updates, each of which is a message to the browser


def is_kernel(ipython: ModuleType) -> bool:
    """Whether this is the process of a notebook, and not IPython in a terminal or a library's import."""
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class _Picture:
    """The progress at one moment, as HTML and as text."""

    def __init__(self, title: str, now: Progress | None, ended: str = "") -> None:
        words = [in_words(now)] if now else [] if ended else ["starting"]
        self._text = f"{title}: {', '.join([*words, *([ended] if ended else [])])}"
        self._done, self._total = amount(now) if now else (0, 0)
        if ended and not self._total:  # without a value the browser shows that the work goes on
            self._done, self._total = int(ended == _DONE), 1

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        share = f" value='{self._done}' max='{self._total}'" if self._total else ""
        style = "width: 20em; max-width: 40%; vertical-align: middle"
        return f"<div><progress{share} style='{style}'></progress> {html.escape(self._text)}</div>"


@contextmanager
def bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """A bar below the cell that runs, while an operation runs. It stays there as it was at the end."""
    # Its package is there, since the notebook runs; types are checked where it is not.
    handle: Any = importlib.import_module("IPython.display").display(_Picture(title, None), display_id=True)
    lock = threading.Lock()
    latest: Progress | None = None
    shown_at = 0.0
    closed = False

    def draw(picture: _Picture) -> None:
        with suppress(Exception):  # a browser that is gone is no reason to stop the work
            handle.update(picture)

    def show(now: Progress) -> None:
        nonlocal latest, shown_at
        with lock:
            if closed:  # a thread that reports late
                return
            latest = now
            if time.monotonic() - shown_at >= _EVERY:
                shown_at = time.monotonic()
                draw(_Picture(title, now))

    ended = "stopped"
    try:
        yield show
        ended = _DONE
    finally:
        with lock:
            closed = True
            draw(_Picture(title, latest, ended))
