"""How objects are shown to people: in one line, or as a small table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

__all__ = ["counted", "duration", "one_line", "table"]

_MOST = 400  # characters of one value


def counted(number: int, noun: str, many: str = "") -> str:
    """A number with its noun: "1 shard", "2,000 shards"; `many` is the plural if it takes more than an s."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def duration(seconds: float) -> str:
    """A time that people wait: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min", "4 d 3 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part, parts in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size:,} {unit}" + (f" {rest} {parts}" if rest else "")
    return f"{whole} s"


def one_line(name: str, values: Iterable[str]) -> str:
    """`name(value, value)` without line breaks. Long values are cut off."""
    return f"{name}({', '.join(map(_short, values))})"


def table(title: str, rows: Mapping[str, object]) -> str:
    """An HTML table of names and values, with all special characters escaped."""
    cells = "".join(
        f"<tr><th style='text-align: left'>{html.escape(name)}</th>"
        f"<td style='text-align: left'>{html.escape(_short(str(value)))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


def _short(value: str) -> str:
    value = " ".join(value.split())
    return value if len(value) <= _MOST else f"{value[:_MOST]}..."
