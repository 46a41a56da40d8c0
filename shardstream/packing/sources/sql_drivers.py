"""What connections to databases have in common, whatever makes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from shardstream.errors import StorageError
from shardstream.format.names import shorten

__all__ = ["PARAMETER", "Driver", "Parts", "file_of", "parts_of", "said"]

Parts = Iterator[Sequence[Sequence[Any]]]  # rows, some at a time

PARAMETER = "\0"  # stands for a parameter until the driver's own mark is known
_MESSAGE = 400  # characters of a driver's message


class Driver(Protocol):
    """What differs between SQLAlchemy and DuckDB."""

    dialect: str
    quotes: tuple[str, str]

    def run(self, sql: str, values: Sequence[Any], batch: int) -> tuple[list[str], Parts]:
        """(names of the columns, rows); each of `values` takes the place of one `PARAMETER`.

        The rows of the statement before are given up.
        """
        ...

    def exact(self, sql: str, names: Sequence[str]) -> dict[str, str]:
        """What to select for columns of a SELECT whose values Python would get changed, by their names.

        Raises:
            SourceError: Nothing can be selected for one.
        """
        ...


def parts_of(
    result: Any, batch: int, explained: Callable[[], contextlib.AbstractContextManager[None]]
) -> Parts:
    """The rows of a result, which is closed behind them.

    Args:
        result: As drivers of Python's DB-API give it.
        batch: How many rows come at a time.
        explained: Turns what a driver raises into errors of ours.
    """
    with contextlib.closing(result):
        while True:
            with explained():
                part = result.fetchmany(batch)
            if not part:
                return
            yield part


def said(error: BaseException, secrets: Sequence[str] = ()) -> str:
    """A driver's message on one line, without the password."""
    text = shorten(" ".join(str(error).split()) or type(error).__name__, _MESSAGE)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def file_of(url: str, path: str, where: str) -> str:
    """The path of the file of a database, which is there: the packages would make an empty one."""
    if os.path.isfile(path):
        return os.path.abspath(path)
    hint = ""
    if os.path.isfile(f"/{path}"):
        hint = f"; an absolute path needs a slash more: {url.partition(':')[0]}:////{path}"
    raise StorageError(f"{where}: there is no file {path}{hint}")
