"""How far an operation is: what pack, index, verify, export and warm report while they run.

It is reported to a function of the user, or on stderr: as a bar in a terminal, otherwise as a plain line
every few seconds.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from shardstream.format.shown import counted
from shardstream.format.sizes import human_size

__all__ = ["Progress", "Report", "Reporter", "shown", "with_bar"]

_EVERY = 5.0  # seconds between plain lines
_NARROW = 80  # columns of a terminal, below which there is no room for a bar and the whole text
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an operation is. A number that an operation does not know is 0.

    Args:
        done_bytes, total_bytes: of the input (pack, index), of the shards (verify), or of the blocks that
            are wanted (warm, whose total is an estimate until all indexes are read).
        found_bytes: the part of `done_bytes` that was there before, as when a pack is continued.
        samples, total_samples: packed, indexed, checked or exported, and of all.
        rejected: samples that a pack left out.
        done_tasks, total_tasks: tasks of a pack, archives of an index, shards of a dataset.
        nodes: machines that can take tasks of a pack now.
        retried: how often a task of a pack was given to a worker again, second attempts at slow ones among
            them.
        lost: workers of a pack that died at work, those of lost machines among them.
        seconds: since the operation began.
    """

    done_bytes: int = 0
    total_bytes: int = 0
    found_bytes: int = 0
    samples: int = 0
    total_samples: int = 0
    rejected: int = 0
    done_tasks: int = 0
    total_tasks: int = 0
    nodes: int = 0
    retried: int = 0
    lost: int = 0
    seconds: float = 0.0

    @property
    def bytes_per_second(self) -> float:
        """The rate so far, without the bytes that were there before."""
        return (self.done_bytes - self.found_bytes) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """The seconds that the remaining bytes take at this rate; 0 while there is no rate."""
        rate = self.bytes_per_second
        return max(0, self.total_bytes - self.done_bytes) / rate if rate else 0.0


# What users may give as `progress`: a function, or True for a bar.
Report = Callable[[Progress], None] | bool | None


class Reporter:
    """Gives a callback the progress, with the seconds since this was made; None is no callback."""

    def __init__(self, callback: Report) -> None:
        self._callback = callback if callable(callback) else None
        self._started = time.monotonic()

    def __call__(self, **numbers: int) -> None:
        """Report these fields of a Progress."""
        if self._callback is not None:
            self._callback(Progress(seconds=time.monotonic() - self._started, **numbers))


def with_bar(title: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for functions with the parameter `progress`: True shows a bar on stderr while they run.

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
            if given.arguments.get("progress") is not True:
                return function(*args, **kwargs)
            with shown(title, quiet=False) as callback:
                given.arguments["progress"] = callback
                return function(*given.args, **given.kwargs)

        return run

    return decorate


@contextmanager
def shown(title: str, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A callback that shows the progress of an operation; None if `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        narrow = console.width < _NARROW
        text = TextColumn("{task.fields[text]}")
        columns = (TextColumn(title), text) if narrow else (TextColumn(title), BarColumn(), text)
        with Bar(*columns, console=console) as bar:
            row = bar.add_task(title, total=None, text="")

            def show(now: Progress) -> None:
                # Bytes measure the work best, but an export only knows its samples.
                done, total = now.done_bytes, now.total_bytes
                if not total:
                    done, total = now.samples, now.total_samples
                text = _short_text(now, console.width - len(title) - 1) if narrow else _text(now)
                bar.update(row, total=total, completed=done, text=text)

            yield show
    else:
        yield _lines(title)


def _lines(title: str) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            with suppress(OSError):  # the reader of stderr has ended, which is no reason to stop the work
                sys.stderr.write(f"{title}: {_text(now)}\n")
                sys.stderr.flush()

    return show


def _text(now: Progress) -> str:
    parts = []
    if now.total_bytes:
        parts.append(f"{human_size(now.done_bytes)} of {human_size(now.total_bytes)}")
        parts.append(f"{human_size(now.bytes_per_second)}/s")
    if now.total_samples:
        parts.append(f"{now.samples:,} of {counted(now.total_samples, 'sample')}")
    elif now.samples:
        parts.append(counted(now.samples, "sample"))
    if now.rejected:
        parts.append(f"{now.rejected:,} rejected")
    if now.nodes > 1:
        parts.append(f"{now.nodes:,} nodes")
    if now.lost:
        parts.append(f"{counted(now.lost, 'worker')} lost")
    if now.retried:
        parts.append(f"{now.retried:,} retried")
    if now.total_bytes:
        parts.append(f"{now.seconds_left:.0f} s left")
    return ", ".join(parts)


def _short_text(now: Progress, room: int) -> str:
    """What fits into `room` columns, the most important first."""
    done, total = (now.done_bytes, now.total_bytes) if now.total_bytes else (now.samples, now.total_samples)
    parts = [f"{100 * done // total} %"] if total else [counted(now.samples, "sample")]
    if now.total_bytes:
        parts += [f"{now.seconds_left:.0f} s left", f"{human_size(now.bytes_per_second)}/s"]
    if now.rejected:
        parts.insert(1, f"{now.rejected:,} rejected")
    while len(parts) > 1 and len(", ".join(parts)) > room:
        parts.pop()
    return ", ".join(parts)
