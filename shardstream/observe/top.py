"""The live view: what all jobs of this user on this node do with their data, drawn once a second."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from shardstream.counters.snapshots import Snapshot, read_all
from shardstream.observe.history import History, Process
from shardstream.observe.keys import keys
from shardstream.observe.report import report
from shardstream.observe.rows import SORTS
from shardstream.observe.signals import ended_by_signal
from shardstream.observe.tables import load_table, work_table
from shardstream.observe.works import works

__all__ = ["look", "snapshot", "watch"]

_LOADS = {"loader", "reader"}
_WIDE = 220  # columns of a table that goes to a file or a pipe
_PAGE = 10  # ranks that an arrow key moves by

Read = Callable[[], Sequence[Snapshot]]


def snapshot(seconds: float = 1.0, read: Read = read_all) -> dict[str, Any]:
    """All that the view shows, and all counters, for machines.

    Args:
        seconds: Over how long rates are taken.
        read: What gives the snapshots of all processes.
    """
    started = time.monotonic()
    processes = _two_looks(seconds, read)
    return report(processes, works(processes), time.monotonic() - started)


def look(console: Console, seconds: float = 1.0, by: str = "rank", read: Read = read_all) -> None:
    """Print the tables once.

    Args:
        console: Where to.
        seconds: Over how long rates are taken.
        by: What the ranks of a job are sorted by; one of `rows.SORTS`.
        read: What gives the snapshots of all processes.
    """
    if not console.file.isatty() and "COLUMNS" not in os.environ:
        console.width = _WIDE
    console.print(_picture(_two_looks(seconds, read), console.width, by))


def watch(
    console: Console, every: float = 1.0, by: str = "rank", note: str = "", read: Read = read_all
) -> None:
    """Show the tables, and draw them again and again, until the user presses q.

    Args:
        console: The terminal.
        every: Seconds between two pictures.
        by: What the ranks of a job are sorted by; one of `rows.SORTS`. The key s takes the next one.
        note: Something to show in the last line.
        read: What gives the snapshots of all processes.
    """
    history, skip, sorts = History(), 0, list(SORTS)
    with (
        ended_by_signal(),
        keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        processes, due = history.update(read()), time.monotonic() + min(every, 0.5)
        while True:
            live.update(
                _screen(processes, console.width, console.height, by, skip, every, note), refresh=True
            )
            key = pressed(max(0.0, due - time.monotonic()))
            if key == "q":
                return
            if key == "s":
                by = sorts[(sorts.index(by) + 1) % len(sorts)]
            elif key in ("up", "down"):
                most = max(0, len(processes) - 1)
                skip = min(most, max(0, skip + (_PAGE if key == "down" else -_PAGE)))
            if time.monotonic() >= due:
                processes, due = history.update(read()), time.monotonic() + every


def _two_looks(seconds: float, read: Read) -> list[Process]:
    history = History()
    history.update(read())
    time.sleep(seconds)
    return history.update(read())


def _picture(
    processes: Sequence[Process], width: int, by: str, lines: int | None = None, skip: int = 0
) -> RenderableType:
    rows = [process.row() for process in processes if process.latest.header.activities & _LOADS]
    other = works(processes)
    parts: list[RenderableType] = []
    if rows:
        room = None if lines is None else lines - 2 - (len(other) + 2 if other else 0)
        parts += [load_table(rows, width, by, room, skip), Text("")]
    if other:
        parts += [work_table(other, width), Text("")]
    if not parts:
        parts.append(Text("No process of this user works with shardstream on this machine."))
    return Group(*parts)


def _screen(
    processes: Sequence[Process], width: int, height: int, by: str, skip: int, every: float, note: str
) -> RenderableType:
    ended = sum(process.ended is not None for process in processes)
    running = len(processes) - ended
    count = f"{running:,} process{'' if running == 1 else 'es'}"
    title = f"shardstream top   {socket.gethostname()}   {count}   {time.strftime('%H:%M:%S')}"
    foot = f"q quit   s sort: {by}   arrows: more ranks   every {every:g} s   {note}"
    return Group(
        Text(title, style="bold", no_wrap=True, overflow="ellipsis"),
        Text(""),
        _picture(processes, width, by, height - 4, skip),
        Text(foot, style="dim", no_wrap=True, overflow="ellipsis"),
    )
