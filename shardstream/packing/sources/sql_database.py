"""The rows of a query over a database, in the order of a key: the query is the table of a larger one."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from shardstream.errors import OptionError, SourceError
from shardstream.packing.sources.sql_alchemy import sqlalchemy_driver
from shardstream.packing.sources.sql_drivers import PARAMETER, Driver, Parts
from shardstream.packing.sources.sql_duckdb import duckdb_driver
from shardstream.storage.options import Options, split_options
from shardstream.storage.secrets import guard_logs, redact

__all__ = ["Database", "Key", "open_database"]

Key = int | str | uuid.UUID

_LIMITS = {"mssql": "OFFSET 0 ROWS FETCH FIRST {} ROWS ONLY", "oracle": "FETCH FIRST {} ROWS ONLY"}
# How texts are compared byte by byte, where it is not the usual.
_BYTEWISE = {
    "sqlite": "{} COLLATE BINARY",
    "duckdb": "CAST({} AS VARCHAR) COLLATE C",  # the cast is for an ENUM
    "mysql": "CAST({} AS BINARY)",
    "mariadb": "CAST({} AS BINARY)",
}
# Semicolons at the end, and comments behind them. Without quotes: one would be the end of a text.
_END = re.compile(r"""\s*;(\s|;|--[^\n'"`$\]]*(\n|$)|/\*[^'"`$\]*]*\*/)*$""")


class Database:
    """The rows of a query, in the order of a key.

    Args:
        driver: The connection.
        query: A SELECT.
        key: The name of a column of it.
        where: The database, for messages.
    """

    def __init__(self, driver: Driver, query: str, key: str, where: str) -> None:
        self._driver, self._where = driver, where
        self._own = _END.sub("", query.strip())
        self._query = f"(\n{self._own}\n) shardstream_rows"
        self._quoted = self._by = self._quote(key)
        self.columns = self._columns()
        if key not in self.columns:
            listed = ", ".join(map(repr, self.columns))
            raise OptionError(f"{where}: the query has no column {key!r} for the key; it has {listed}")
        self._exact = driver.exact(self._select("*", ""), self.columns)
        if isinstance(self.first(key), str):
            self._by = _BYTEWISE.get(driver.dialect, "{}").format(self._quoted)

    def _quote(self, name: str) -> str:
        begin, end = self._driver.quotes
        return f"{begin}{name.replace(end, end * 2)}{end}"

    def _selected(self, name: str) -> str:
        """What to select for a column."""
        quoted = self._quote(name)
        return f"{self._exact[name]} AS {quoted}" if name in self._exact else quoted

    def _select(self, what: str, rest: str) -> str:
        return f"SELECT {what} FROM {self._query} {rest}"  # noqa: S608 - the query is the user's own

    def _columns(self) -> list[str]:
        # Of an empty result: the database says what is wrong with the query before it does any work.
        names, _ = self._driver.run(self._select("*", "WHERE 1 = 0"), (), 1)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is None and any(re.fullmatch(r"(.+)[:_]\d+", name) for name in names):
            # Within another query SQLite and DuckDB give the second of two equal names a number.
            own, parts = self._driver.run(self._own, (), 1)
            parts.close()  # type: ignore[attr-defined]
            folded = [name.casefold() for name in own]
            twice = next((name for name in own if folded.count(name.casefold()) > 1), None)
            twice = None if own == names else twice
        if twice is not None:
            raise SourceError(f"{self._where}: two columns of the query are called {twice!r}; rename one")
        return names

    def first(self, column: str) -> Any:
        """The first value of a column that is not NULL; None if there is none."""
        name = self._quote(column)
        limit = _LIMITS.get(self._driver.dialect, "LIMIT {}").format(1)
        sql = self._select(name, f"WHERE {name} IS NOT NULL ORDER BY {self._quoted} {limit}")
        found = [row[0] for part in self._driver.run(sql, (), 1)[1] for row in part]
        return found[0] if found else None

    def nulls(self) -> int:
        """How many rows have NULL for a key."""
        sql = self._select("COUNT(*)", f"WHERE {self._quoted} IS NULL")
        return sum(int(row[0]) for part in self._driver.run(sql, (), 1)[1] for row in part)

    def keys(self, batch: int) -> Parts:
        """The keys that are not NULL, in order; rows of one value."""
        sql = self._select(self._quoted, f"WHERE {self._quoted} IS NOT NULL ORDER BY {self._by}")
        return self._driver.run(sql, (), batch)[1]

    def rows(self, columns: Sequence[str], begin: Key | None, end: Key | None, batch: int) -> Parts:
        """The rows from the key `begin` to before the key `end`, in the order of their keys.

        Args:
            columns: The names of the columns.
            begin, end: None: from the first one, to the last one.
            batch: How many are in memory at a time.
        """
        tests = [f"{self._quoted} IS NOT NULL"]
        tests += [f"{self._by} >= {PARAMETER}"] if begin is not None else []
        tests += [f"{self._by} < {PARAMETER}"] if end is not None else []
        rest = f"WHERE {' AND '.join(tests)} ORDER BY {self._by}"
        sql = self._select(", ".join(map(self._selected, columns)), rest)
        return self._driver.run(sql, [key for key in (begin, end) if key is not None], batch)[1]


@contextlib.contextmanager
def open_database(url: str, query: str, key: str, options: Options = None) -> Iterator[Database]:
    """A connection to a database for one query. What is wrong with either is an error that names it.

    Args:
        url: As SQLAlchemy takes it, or duckdb:///PATH, or duckdb:// for a query over files.
        query: A SELECT.
        key: The column that orders and names the rows.
        options: `timeouts` says how long a connection may take.

    Raises:
        OptionError: It is no URL of a database, or the query has no such column.
        MissingExtraError: SQLAlchemy, DuckDB or the driver is not installed.
        StorageError: The database does not answer, or cannot be opened.
        SourceError: The query is wrong.
    """
    where = redact(url)
    guard_logs(url, options)
    if not re.match(r"[A-Za-z][\w+.-]*://", url):
        raise OptionError(f"{where}: this is no URL of a database, such as sqlite:///docs.db")
    scheme, _, rest = url.partition("://")
    url = f"{scheme.lower()}://{rest}"
    if re.match(r"sqlite(\+\w+)?://[^/?]", url):
        raise OptionError(
            f"{where}: three slashes begin a path, as in sqlite:///docs.db, and four an absolute one"
        )
    seconds = split_options(options)[0].timeouts.connect
    duck = url.startswith("duckdb:")
    with duckdb_driver(url, where) if duck else sqlalchemy_driver(url, where, seconds) as driver:
        yield Database(driver, query, key, where)
