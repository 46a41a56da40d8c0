"""What commands print: lines that break between words, where the terminal ends."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from shardstream.format.shown import clean

__all__ = ["clean", "cut", "facts", "room", "say", "table", "takes", "warn", "wrapped"]

_LEAST = 20  # columns, with which nothing but the first words of a line has room
_GAP = "  "
# A number and its unit are one word.
_WORD = re.compile(r"\(?\d[\d,.]* (?:[KMGTP]i)?(?:B|s|ms|min|h|d|%)(?![\w])\S*|\S+")


def room(stream: TextIO | None = None) -> int | None:
    """The columns of what we print to: COLUMNS, or else the terminal's; None for a file or a pipe.

    Args:
        stream: Where to; standard output if left out.
    """
    stream = sys.stdout if stream is None else stream
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked):
        return max(_LEAST, int(asked))
    if not stream.isatty():
        return None
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max(_LEAST, columns or shutil.get_terminal_size().columns)


def cells(text: str) -> int:
    """The columns that a text takes: letters of Chinese take 2 each, accents of others 0."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def wrapped(text: str, width: int | None, later: str = "  ", first: str = "") -> list[str]:
    """A line as lines that fit. No word is broken, so that paths can be copied whole.

    Args:
        text: One line. The spaces that it begins with are kept.
        width: Columns; None for any number.
        later: What the second and the following lines begin with.
        first: What the first line begins with, as it is.
    """
    if width is None or cells(first + text) <= width:
        return [first + text]
    words = _WORD.findall(text)
    begin = first + text[: len(text) - len(text.lstrip())]
    lines, line = [], begin + words[0] if words else begin
    for word in words[1:]:
        if cells(f"{line} {word}") > width:
            lines.append(line)
            line = later + word
        else:
            line = f"{line} {word}"
    return [*lines, line]


def say(text: str = "", later: str = "  ") -> None:
    """Print a line on standard output, without characters that would steer the terminal.

    Args:
        text: The line, or several.
        later: What a second line begins with, if the terminal is too narrow for one.
    """
    for line in text.split("\n"):
        print("\n".join(wrapped(clean(line), room(), later)))


def warn(text: str) -> None:
    """Print a line on standard error. That nobody reads it is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            lines = [row for line in text.split("\n") for row in wrapped(clean(line), room(sys.stderr))]
            print("\n".join(lines), file=sys.stderr, flush=True)


def facts(rows: Iterable[tuple[str, str]], indent: str = "  ") -> None:
    """Print names with their values, one below the other; a value is wrapped beside its name."""
    listed = [(clean(name), clean(value)) for name, value in rows]
    width = room()
    wide = max((cells(name) for name, _ in listed), default=0)
    below = indent + " " * (wide + len(_GAP))
    for name, value in listed:
        if width is None or width - len(below) >= _LEAST:
            first = f"{indent}{name}{' ' * (wide - cells(name))}{_GAP}"
            print("\n".join(wrapped(value, width, below, first)))
        else:
            print("\n".join(wrapped(f"{indent}{name}: {value}", width, indent * 2)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: str = "", indent: str = "") -> None:
    """Print a table; if the terminal is too narrow for it, one row below the other with all its values.

    Args:
        head: The titles of the columns.
        rows: The texts of each row, as many as titles.
        right: For each column ">" if its texts end at its right edge, else "<"; "<" for all if left out.
        indent: What each line begins with.
    """
    listed = [[clean(text) for text in row] for row in rows]
    sides = right or "<" * len(head)
    widths = [max(map(cells, column)) for column in zip(head, *listed, strict=True)]
    width = room()
    if width is not None and len(indent) + sum(widths) + len(_GAP) * (len(head) - 1) > width:
        for row in listed:
            print("\n".join(wrapped(f"{indent}{row[0]}", width)))
            for title, text in zip(head[1:], row[1:], strict=True):
                if text:
                    print("\n".join(wrapped(f"{indent}  {title}: {text}".rstrip(), width, f"{indent}    ")))
        return
    for row in ([*head], *listed):
        texts = []
        for text, wide, side in zip(row, widths, sides, strict=True):
            blank = " " * (wide - cells(text))
            texts.append(blank + text if side == ">" else text + blank)
        print((indent + _GAP.join(texts)).rstrip())


def cut(text: str, width: int) -> str:
    """As much of the beginning of a text as fits, with three dots if that is not all."""
    if cells(text) <= width:
        return text
    taken, used = 0, 3
    for letter in text:
        used += cells(letter)
        if used > width:
            break
        taken += 1
    return text[:taken].rstrip() + "..."


def takes(text: str) -> bool:
    """Whether standard output has these characters in its encoding."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
