"""The tables of the view, for any width: first go the columns that matter least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rich.table import Table
from rich.text import Text

from shardstream.format.shown import counted, duration
from shardstream.format.sizes import human_size
from shardstream.observe.rows import Row, Work, shown_time, sort_rows

__all__ = ["load_table", "plain_text", "work_table"]

_GAP = 2  # columns of the terminal between two columns of a table
_NAME = 20  # the least width of the first column
_NARROW, _SHORT_NAME = 70, 10  # columns of a terminal below which it is shorter, and as short as this
_MIB = 1 << 20
_STATE = 26  # "stopped, no progress 100 s"
_NO_STATE = 5
_SOME, _MUCH = 0.05, 0.20  # shares of waiting from which it is worth a look, and costs a lot


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    weight: int  # the columns of the largest weight go first, if there is no room
    text: Callable[[Row], str]
    style: Callable[[Row], str] = lambda _: ""


def _number(value: float | None, form: str = ",.0f", scale: float = 1.0) -> str:
    return "-" if value is None else format(value / scale, form)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else shown_time(seconds)


def _size(size: int | None) -> str:
    return "-" if size is None else human_size(size)


def _wait_style(row: Row) -> str:
    if row.wait is None:
        return "dim"
    return "green" if row.wait < _SOME else "yellow" if row.wait < _MUCH else "bold red"


_COLUMNS = (
    _Column("pid", 7, 8, lambda row: str(row.pid) if row.pid else "", lambda _: "dim"),
    _Column("samples/s", 9, 0, lambda row: _number(row.samples)),
    _Column("batches/s", 9, 9, lambda row: _number(row.batches, ",.1f")),
    _Column("wait", 6, 0, lambda row: _percent(row.wait), _wait_style),
    _Column("p50 wait", 8, 7, lambda row: _time(row.p50)),
    _Column("p99 wait", 8, 1, lambda row: _time(row.p99)),
    _Column("store MiB/s", 11, 2, lambda row: _number(row.store, ",.1f", _MIB)),
    _Column("disk MiB/s", 10, 5, lambda row: _number(row.disk, ",.1f", _MIB)),
    _Column("ram MiB/s", 9, 6, lambda row: _number(row.ram, ",.1f", _MIB)),
    _Column("hits", 5, 4, lambda row: _percent(row.hits)),
    _Column("held up by", 10, 3, lambda row: row.held_up),
    _Column("queue", 5, 6, lambda row: _number(row.queue)),
    _Column("retries", 7, 4, lambda row: f"{row.retries:,}", lambda row: "yellow" if row.retries else ""),
    _Column("memory", 9, 5, lambda row: _size(row.memory)),
    _Column("resident", 9, 9, lambda row: _size(row.resident)),
)


def plain_text(text: str) -> str:
    """Text of another process, without what would steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def load_table(rows: Iterable[Row], width: int, by: str, lines: int | None = None, skip: int = 0) -> Table:
    """The processes that load: for each job a line with its sums, then a line for each rank.

    Args:
        rows: All of them.
        width: Of the terminal.
        by: What the ranks of a job are sorted by; one of `rows.SORTS`.
        lines: How many lines there is room for; None is for any number.
        skip: How many ranks of each job are left out at its beginning.
    """
    rows = list(rows)
    narrow, trouble = width < _NARROW, any(row.state for row in rows)
    state = _STATE if trouble else 0 if narrow else _NO_STATE
    least = _SHORT_NAME if narrow else _NAME
    shown = _fitting(width - state - (_GAP if state else 0) - least - _GAP, 0 if narrow else 2)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), expand=False, header_style="bold cyan")
    fixed = sum(column.width + _GAP for column in shown)
    table.add_column("job", no_wrap=True, width=max(least, min(56, width - fixed - state - _GAP)))
    for column in shown:
        table.add_column(column.title, no_wrap=True, justify="right", width=column.width)
    if state:
        table.add_column("state", no_wrap=True, width=state)
    jobs = [list(found) for _, found in groupby(sorted(rows, key=lambda row: row.job), lambda row: row.job)]
    rooms = _shared([len(job) + (len(job) > 1) for job in jobs], lines)
    for job, room in zip(jobs, rooms, strict=True):
        if len(job) == 1:
            _add(table, shown, _job_name(job), job[0], "bold")
            continue
        _add(table, shown, _job_name(job), _sum(job), "bold")
        ranks = sort_rows(job, by)
        most = len(ranks) if len(ranks) < room else max(1, room - 2)
        first = max(0, min(skip, len(ranks) - most))
        for row in ranks[first : first + most]:
            name = f"  rank {row.rank}" if row.rank is not None else f"  process {row.pid}"
            _add(table, shown, name, row, "")
        if most < len(ranks):
            table.add_row(Text(f"  {first + 1} to {first + most} of {len(ranks)}", style="dim"))
    return table


def _shared(wanted: list[int], lines: int | None) -> list[int]:
    """How many lines each job gets: what a small one does not need is left to the large ones."""
    if lines is None:
        return wanted
    given, left = [0] * len(wanted), lines
    for done, number in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        given[number] = min(wanted[number], max(3, left // (len(wanted) - done)))
        left -= given[number]
    return given


def _fitting(room: int, least: int) -> list[_Column]:
    """The columns that have room, at least so many."""
    shown = list(_COLUMNS)
    while sum(column.width + _GAP for column in shown) > room and len(shown) > least:
        shown.remove(max(shown, key=lambda column: column.weight))
    return shown


def _add(table: Table, shown: Sequence[_Column], name: str, row: Row, style: str) -> None:
    state = Text(row.state, style="bold red" if row.state else "", overflow="ellipsis")
    table.add_row(
        Text(name, style=style, overflow="ellipsis"),
        *(Text(column.text(row), style=f"{style} {column.style(row)}".strip()) for column in shown),
        *([state] if len(table.columns) > len(shown) + 1 else []),
        style="dim" if row.state == "ended" else None,
    )


def _job_name(job: list[Row]) -> str:
    what = {row.what for row in job if row.what}
    read = what.pop() if len(what) == 1 else counted(len(what), "dataset") if what else ""
    return plain_text(" ".join(filter(None, (job[0].job, read))))


def _sum(job: list[Row]) -> Row:
    """The line of a job: sums of rates and bytes, the mean of shares, the worst of waits."""

    def known(name: str) -> list[float]:
        return [value for row in job if (value := getattr(row, name)) is not None]

    def total(name: str) -> float | None:
        values = known(name)
        return sum(values) if values else None

    def mean(name: str) -> float | None:
        values = known(name)
        return sum(values) / len(values) if values else None

    troubled = sum(bool(row.state) for row in job)
    memory, resident, queue = total("memory"), total("resident"), mean("queue")
    return replace(
        job[0],
        pid=0,
        rank=None,
        state=f"{troubled:,} of {len(job):,} in trouble" if troubled else "",
        samples=total("samples"),
        batches=total("batches"),
        wait=mean("wait"),
        p50=mean("p50"),
        p99=max(known("p99"), default=None),
        store=total("store"),
        disk=total("disk"),
        ram=total("ram"),
        hits=mean("hits"),
        held_up=_most_common([row.held_up for row in job if row.held_up]),
        queue=None if queue is None else round(queue),
        retries=sum(row.retries for row in job),
        memory=None if memory is None else int(memory),
        resident=None if resident is None else int(resident),
    )


def _most_common(names: list[str]) -> str:
    return max(sorted(set(names)), key=names.count) if names else ""


def work_table(works: Iterable[Work], width: int) -> Table:
    """Packs, warm-ups, checkpoints, weights and logs."""
    wide = width >= 120
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), expand=False, header_style="bold cyan")
    narrow = width < _NARROW
    table.add_column("work", no_wrap=True, width=10)
    # A narrow terminal has what else there is to say below the name.
    name_width = max(_SHORT_NAME, width - 10 - 6 - 2 * _GAP) if narrow else 44 if wide else _NAME
    table.add_column("job", no_wrap=not narrow, overflow="fold", width=name_width)
    table.add_column("done", no_wrap=True, justify="right", width=6)
    if not narrow:
        table.add_column("MiB/s", no_wrap=True, justify="right", width=8)
        table.add_column("left", no_wrap=True, justify="right", width=9)
        table.add_column("", overflow="fold")
    for work in works:
        many = f" ({work.processes})" if work.processes > 1 else ""
        name = (
            f"{work.job}{many} {work.what}" if wide else f"{work.what.rpartition('/')[2] or work.job}{many}"
        )
        said = Text(work.detail)
        for text in (work.trouble, work.state):
            if text:
                said.append(", " if said.plain else "").append(text, style="bold red")
        kind, done = (
            Text(work.kind, style="bold"),
            _percent(work.progress) if work.progress is not None else "",
        )
        rate = _number(work.rate, ",.1f", _MIB) if work.rate else ""
        left = "" if work.left is None else _coarse(work.left)
        if narrow:
            more = [f"{rate} MiB/s" if rate else "", f"{left} left" if left else ""]
            below = Text("\n").join([Text(plain_text(name)), *map(Text, filter(None, more)), said])
            table.add_row(kind, below, Text(done))
        else:
            job = Text(plain_text(name), overflow="ellipsis")
            table.add_row(kind, job, Text(done), Text(rate), Text(left), said)
    return table


def _coarse(seconds: float) -> str:
    """A time to wait, which changes each second: no finer than is of use, such as "12 s" or "3 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min" if seconds < 3600 else duration(seconds)
