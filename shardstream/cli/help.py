"""How `--help` is laid out: for any width, without broken words, and with whole sentences."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from shardstream.cli.screen import wrapped

__all__ = ["Command", "Group"]

_MOST = 100  # columns, beyond which lines are hard to read
_NARROW = 60  # columns, below which there is no room for two columns
_TERM = 28  # columns of an option beside its meaning

# Through typer, since newer releases of it have a copy of click of their own.
_Context: Any = TyperCommand.context_class


class _Formatter(_Context.formatter_class):  # type: ignore[misc]
    def __init__(self, *_: object, **__: object) -> None:
        super().__init__(width=max(20, min(shutil.get_terminal_size().columns, _MOST)))

    def _print(self, text: str, first: str, later: str) -> None:
        for line in wrapped(text, self.width, later, first):
            self.write(f"{line.rstrip()}\n")

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        args = re.sub(r"\{([^}]*\.\.\.[^}]*)\}\.\.\.", r"\1", args)
        args = re.sub(r"\{([^}]*)\}", lambda found: found[1].upper(), args)
        self._print(args, f"{prefix or 'Usage: '}{prog} ", "    ")

    def write_text(self, text: str) -> None:
        indent = " " * self.current_indent
        for number, paragraph in enumerate(re.split(r"\n\s*\n", text)):
            if number:
                self.write("\n")
            self._print(" ".join(paragraph.split()), indent, indent)

    def write_dl(self, rows: Sequence[tuple[str, str]], *_: object, **__: object) -> None:
        indent = " " * self.current_indent
        named = [(_term(term), _meaning(term, text)) for term, text in rows]
        below = indent + " " * 4
        if self.width >= _NARROW:
            below = indent + " " * (min(_TERM, max((len(term) for term, _ in named), default=0)) + 2)
        for term, text in named:
            if text and len(indent) + len(term) + 2 <= len(below):
                self._print(text, f"{indent}{term}".ljust(len(below)), below)
                continue
            self._print(term, indent, below)
            if text:
                self._print(text, below, below)


def _term(term: str) -> str:
    """An option or argument, without words of Python: "--level <int>" and "URL", not "url <str>"."""
    term = re.sub(r"<(\w+) range>", r"<\1>", term.strip())
    if term.startswith("-"):
        return term
    name = re.sub(r" +<[^>]*>$", "", term)
    return name.upper() if name != term else name


def _meaning(term: str, text: str) -> str:
    """What it means, with the words that an argument may be."""
    found = None if term.strip().startswith("-") else re.search(r" <([^>]*\|[^>]*)>$", term.strip())
    return " ".join([*text.split(), *([f"One of: {found[1].replace('|', ', ')}."] if found else [])])


class _ShownContext(_Context):  # type: ignore[misc]
    formatter_class = _Formatter


class Command(TyperCommand):
    """A command whose help fits the terminal."""

    context_class = _ShownContext


class Group(TyperGroup):
    """The commands, each with its first sentence as a whole."""

    context_class = _ShownContext

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of the commands."""
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(1000))
            for name, command in named
            if command and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
