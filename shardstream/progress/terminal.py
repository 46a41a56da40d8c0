"""Bars in a terminal: a row for each operation of this process, all in one place."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from shardstream.format.shown import duration
from shardstream.progress.numbers import Progress
from shardstream.progress.text import amount, in_words

__all__ = ["bar"]

_NARROW = 80  # columns, below which there is no room for a bar and for words
_WIDE = 120  # columns, from which on a bar may be long


class _Words(ProgressColumn):
    """What the bar does not show, as much as the terminal has room for."""

    def __init__(self, room: Callable[[str], int]) -> None:
        super().__init__()
        self._room = room

    def render(self, task: Task) -> Text:
        now: Progress | None = task.fields["now"]
        room = self._room(task.description)
        parts = [in_words(now, room)] if now else []
        if not task.total and task.elapsed:  # nobody knows how long it takes
            parts.append(duration(task.elapsed))
        text = ", ".join(filter(None, parts))
        return Text(text if len(text) <= room else parts[0], no_wrap=True)


def _is_terminal(stream: object) -> bool:
    """Whether it is one; a program may have closed or replaced its stdout."""
    return bool(getattr(stream, "isatty", bool)())


class _Rows(Bars):
    """The rows, as the terminal has room for them now."""

    def __init__(self) -> None:
        self._terminal = Console(stderr=True)
        # What the program prints on stdout stays there if that is a file or a pipe.
        super().__init__(console=self._terminal, redirect_stdout=_is_terminal(sys.stdout))

    def get_renderables(self) -> Iterable[RenderableType]:
        width = self._terminal.width
        name, long = TextColumn("{task.description}", markup=False), 40 if width >= _WIDE else 20
        if width < _NARROW:
            self.columns = (name, _Words(lambda title: width - len(title) - 1))
        else:
            self.columns = (name, BarColumn(long), _Words(lambda title: width - len(title) - long - 2))
        yield self.make_tasks_table(self.tasks)


class _Screen:
    """The rows of this process. Two operations at once would else draw over each other."""

    def __init__(self) -> None:
        self._lock, self._rows, self._open = threading.Lock(), None, 0

    _rows: _Rows | None

    def add(self, title: str) -> tuple[_Rows, TaskID]:
        with self._lock:
            if self._rows is None:
                rows = _Rows()
                rows.start()
                self._rows = rows
            self._open += 1
            return self._rows, self._rows.add_task(title, total=None, now=None)

    def end(self, rows: _Rows, row: TaskID) -> None:
        with self._lock:
            if rows is not self._rows:  # those of the process that this one was forked from
                return
            rows.stop_task(row)
            self._open -= 1
            if not self._open:
                self._rows = None
                with suppress(OSError, ValueError):  # the terminal may be gone, and the work is done
                    rows.stop()

    def forked(self) -> None:
        """Begin anew: a forked process has no thread that draws, and may have copied a lock that is taken."""
        if self._rows is not None:  # what is printed would go through the rows
            sys.stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
            sys.stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        self._lock, self._rows, self._open = threading.Lock(), None, 0


_screen = _Screen()
os.register_at_fork(after_in_child=_screen.forked)


@contextmanager
def bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """A row in the terminal of stderr while an operation runs. It stays there as it was at the end."""
    rows, row = _screen.add(title)

    def show(now: Progress) -> None:
        done, total = amount(now)
        rows.update(row, total=total or None, completed=done, now=now)

    try:
        yield show
    finally:
        _screen.end(rows, row)
