"""Connections of DuckDB, which only read."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from shardstream.errors import SourceError, StorageError, require
from shardstream.packing.sources.sql_drivers import PARAMETER, Driver, Parts, file_of, said

__all__ = ["duckdb_driver"]


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
        return names, self._parts(cursor, batch)

    def _parts(self, cursor: Any, batch: int) -> Parts:
        with contextlib.closing(cursor):
            while True:
                with self._explained():
                    part = cursor.fetchmany(batch)
                if not part:
                    return
                yield part

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._module.Error as error:
            raise SourceError(f"{self._where}: {said(error)}") from None
        except Exception as error:  # noqa: BLE001 - for values that Python does not have
            raise SourceError(f"{self._where}: {type(error).__name__}: {said(error)}") from None


@contextlib.contextmanager
def duckdb_driver(url: str, where: str) -> Iterator[Driver]:
    """A connection of DuckDB: duckdb:///PATH, or duckdb:// for a query over files.

    Args:
        url: The database.
        where: The same for messages.
    """
    module = require("duckdb", "duckdb")
    path = unquote(re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0]).removeprefix("/")
    config = {
        # What does not fit into memory goes there, and not beside the database.
        "temp_directory": os.path.join(tempfile.gettempdir(), f"shardstream-duckdb-{os.getuid()}"),
        "autoinstall_known_extensions": "false",  # nothing is downloaded without a word
    }
    if path not in ("", ":memory:"):
        path = file_of(url, path, where)
    try:
        found = module.connect(path or ":memory:", read_only=path not in ("", ":memory:"), config=config)
        # Not that of this machine, so that all machines make the same bytes.
        found.execute("SET GLOBAL TimeZone = 'UTC'")
    except Exception as error:  # noqa: BLE001 - as it likes
        raise StorageError(f"{where}: the database cannot be opened: {said(error)}") from None
    with contextlib.closing(found):
        yield _DuckDb(module, found, where)
