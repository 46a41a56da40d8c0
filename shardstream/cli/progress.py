"""Progress on stderr: a bar at a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shardstream.format.sizes import human_size

if TYPE_CHECKING:
    from shardstream.pack.progress import Progress

_EVERY = 5.0  # seconds between plain lines


@contextmanager
def shown(title: str, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A callback that shows the progress of a pack, or None."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.progress import TextColumn

        with _bar(TextColumn(title), *_bytes_columns(), TextColumn("{task.fields[note]}")) as bar:
            row = bar.add_task(title, total=None, note="")

            def show(now: Progress) -> None:
                note = f"{now.samples:,} samples" + (f", {now.rejected:,} rejected" if now.rejected else "")
                bar.update(row, total=now.total_bytes, completed=now.done_bytes, note=note)

            yield show
    else:
        yield _lines(title)


@contextmanager
def counted(title: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A callback that shows (samples done, of all), or None."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.progress import Progress as Bar

        with _bar(*Bar.get_default_columns()) as bar:
            row = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(row, total=total, completed=done)
    else:
        yield _counts(title)


@contextmanager
def moved(title: str, quiet: bool) -> Iterator[Callable[[int, int, float], None] | None]:
    """A callback that shows (bytes done, of all, in seconds) with rate and time left, or None."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.progress import TextColumn

        with _bar(TextColumn(title), *_bytes_columns()) as bar:
            row = bar.add_task(title, total=None)
            yield lambda done, total, seconds: bar.update(row, total=total, completed=done)
    else:
        yield _moves(title)


def _bar(*columns: Any) -> Any:
    from rich.console import Console
    from rich.progress import Progress as Bar

    return Bar(*columns, console=Console(stderr=True))


def _bytes_columns() -> tuple[Any, ...]:
    from rich import progress as rich

    return (
        rich.BarColumn(),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )


def _moves(title: str) -> Callable[[int, int, float], None]:
    last, before = time.monotonic(), -1

    def show(done: int, total: int, seconds: float) -> None:
        nonlocal last, before
        before = done if before < 0 else before  # what was there already was not moved
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            rate = (done - before) / seconds if seconds else 0.0
            left = (total - done) / rate if rate else 0.0
            amount = f"{human_size(done)} of {human_size(total)}, {human_size(rate)}/s"
            print(f"{title}: {amount}, {left:.0f} s left", file=sys.stderr, flush=True)

    return show


def _counts(title: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            print(f"{title}: {done:,} of {total:,} samples", file=sys.stderr, flush=True)

    return show


def _lines(title: str) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last < _EVERY:
            return
        last = time.monotonic()
        rate = now.done_bytes / now.seconds if now.seconds else 0.0
        left = (now.total_bytes - now.done_bytes) / rate if rate else 0.0
        print(
            f"{title}: {human_size(now.done_bytes)} of {human_size(now.total_bytes)}, {human_size(rate)}/s, "
            f"{now.samples:,} samples, {now.rejected:,} rejected, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return show
