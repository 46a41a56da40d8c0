"""Connections of DuckDB, which only read."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, unquote

from shardstream.errors import OptionError, SourceError, StorageError, require
from shardstream.packing.sources.sql_drivers import PARAMETER, Driver, Parts, file_of, parts_of, said
from shardstream.storage.store import named

__all__ = ["duckdb_driver"]

_MEMORY = "1GiB"  # what a sort needs beyond it goes to files
# What to select for types whose values Python's types cannot hold: {0} is the column, {1} what is wrong.
_EXACT = (
    (r"DATE|TIMESTAMP(_S|_MS| WITH TIME ZONE)?", "CASE WHEN isinf({0}) THEN error('{1}') ELSE {0} END"),
    (r"TIMESTAMP_NS", "strftime({0}, '%Y-%m-%dT%H:%M:%S.%n')"),
    (r"TIME_NS|INTERVAL", "CAST({0} AS VARCHAR)"),
)


class _DuckDb:
    """A connection of DuckDB."""

    dialect = "duckdb"
    quotes = ('"', '"')

    def __init__(self, module: ModuleType, connection: Any, where: str) -> None:
        self._module, self._connection, self._where = module, connection, where

    def run(self, sql: str, values: Sequence[Any], batch: int) -> tuple[list[str], Parts]:
        with self._explained():
            cursor = self._connection.cursor()
            cursor.execute(sql.replace(PARAMETER, "?"), list(values))
            names = [column[0] for column in cursor.description]
        return names, parts_of(cursor, batch, self._explained)

    def exact(self, sql: str, names: Sequence[str]) -> dict[str, str]:
        _, parts = self.run(f"DESCRIBE {sql}", (), len(names))
        types = [str(row[1]) for part in parts for row in part]
        found = {}
        for name, kind in zip(names, types, strict=True):
            column = '"' + name.replace('"', '""') + '"'
            form = next((form for pattern, form in _EXACT if re.fullmatch(pattern, kind)), None)
            if form is not None:
                what = f"column {name!r} has the value infinity, which is no time: cast it in the query"
                found[name] = form.format(column, what.replace("'", "''"))
            elif lost := re.search(r"\b(TIMESTAMP_NS|TIME_NS|INTERVAL)\b", re.sub(r'"[^"]*"', "", kind)):
                raise SourceError(
                    f"{self._where}: column {name!r} has values of type {lost[1]} within it, which would "
                    "lose digits: cast it in the query, as in CAST(c AS JSON) AS c"
                )
        return found

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._module.OutOfMemoryException as error:
            raise SourceError(
                f"{self._where}: {said(error)} Say how much it may take with ?memory_limit=4GB behind the URL"
            ) from None
        except self._module.Error as error:
            raise SourceError(f"{self._where}: {said(error)}") from None
        except Exception as error:  # noqa: BLE001 - for values that Python does not have
            raise SourceError(f"{self._where}: {type(error).__name__}: {said(error)}") from None


@contextlib.contextmanager
def duckdb_driver(url: str, where: str) -> Iterator[Driver]:
    """A connection of DuckDB: duckdb:///PATH, or duckdb:// for a query over files.

    Args:
        url: The database. `?memory_limit=4GB` says how much memory DuckDB may take, and `threads=1` how many
            threads.
        where: The same for messages.
    """
    module = require("duckdb", "duckdb")
    place, _, told = url.partition("://")[2].partition("?")
    path = unquote(place).removeprefix("/")
    config = {
        # Each worker has a connection of its own, so not most of the machine's memory, as DuckDB would have.
        "memory_limit": _MEMORY,
        # What does not fit into memory goes there, and not beside the database. Each connection has its own
        # folder: two would write the same files. DuckDB makes it when it needs it, and removes it.
        "temp_directory": os.path.join(tempfile.gettempdir(), f"shardstream-duckdb-{uuid.uuid4().hex}"),
        "autoinstall_known_extensions": "false",  # nothing is downloaded without a word
    }
    for name, value in parse_qsl(told, keep_blank_values=True):
        if name not in ("memory_limit", "threads"):
            raise OptionError(f"{where}: unknown parameter {name!r}; there are memory_limit and threads")
        config[name] = value
    if path not in ("", ":memory:"):
        path = file_of(url, path, where)
        with named(where), open(path, "rb") as file:
            if file.read(16) == b"SQLite format 3\0":
                raise SourceError(f"{where}: this is a database of SQLite: begin its URL with sqlite://")
    try:
        found = module.connect(path or ":memory:", read_only=path not in ("", ":memory:"), config=config)
        # Not that of this machine, so that all machines make the same bytes.
        found.execute("SET GLOBAL TimeZone = 'UTC'")
    except Exception as error:  # noqa: BLE001 - as it likes
        raise StorageError(f"{where}: the database cannot be opened: {said(error)}") from None
    with contextlib.closing(found):
        yield _DuckDb(module, found, where)
