"""How objects are shown to people: in one line, or as a small table in a notebook."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["clean", "counted", "duration", "numbers", "one_line", "table"]

_MOST = 400  # characters of one value
_LAST = 5  # numbers at the end of many
_ROOMY = 80  # letters, from which on there is room for so many


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


def clean(text: str, lines: bool = False) -> str:
    """The text with all that would steer the terminal in the way that Python writes it, as `\\x1b`.

    Args:
        text: Any text.
        lines: Whether line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    keep = "\n\t" if lines else ""
    text = text.replace("\r\n", "\n") if lines else text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def _escaped(letter: str) -> str:
    if letter in "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}" or unicodedata.category(letter) == "Zs":
        return letter  # harmless: within one emoji or word, and spaces
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")


def numbers(values: Any, letters: int) -> str:
    """Numbers as text: all of them, or the first and the last ones.

    Args:
        values: A list or an array of one axis.
        letters: How long the text may be.
    """
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in _some(values, letters)]
    if len(shown) == len(values) and len(" ".join(shown)) <= letters:
        return " ".join(shown)
    many = _LAST if letters >= _ROOMY else 1
    last = shown[-many:]
    while last and len(" ".join(["...", *last])) > letters:
        last.pop(0)
    left, first = letters - len(" ".join(["...", *last])), []
    for text in shown[: len(shown) - len(last)]:
        left -= len(text) + 1
        if left < 0:
            break
        first.append(text)
    return " ".join([*first, "...", *last])


def _some(values: Any, letters: int) -> list[Any]:
    """The numbers that might be shown, as those of Python."""
    most = letters // 2 + _LAST
    if len(values) > most:
        return [*_listed(values[: most - _LAST]), *_listed(values[-_LAST:])]
    return _listed(values)


def _listed(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)


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
