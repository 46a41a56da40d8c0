"""Connections to databases, by SQLAlchemy or DuckDB. Nothing here writes to them.

The text of a query goes to the driver as it is: SQLAlchemy would take `:name` within it for a parameter.
What drivers raise is told without its traceback, in which passwords may be.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import quote, unquote

from shardstream.errors import (
    MissingExtraError,
    OptionError,
    ShardstreamError,
    SourceError,
    StorageError,
    require,
)
from shardstream.format.names import shorten

__all__ = ["PARAMETER", "Driver", "Parts", "duckdb_driver", "sqlalchemy_driver"]

Parts = Iterator[Sequence[Sequence[Any]]]  # rows, some at a time

PARAMETER = "\0"  # stands for a parameter until the driver's own mark is known
_MARKS: dict[str, Callable[[int], str]] = {
    "qmark": lambda _: "?",
    "format": lambda _: "%s",
    "pyformat": lambda number: f"%(p{number})s",
    "named": lambda number: f":p{number}",
    "numeric": lambda number: f":{number + 1}",
    "numeric_dollar": lambda number: f"${number + 1}",
}
# Times are in UTC whatever the server or this machine prefers, and nothing can be written.
_SETTINGS = {
    "postgresql": ("SET TIME ZONE 'UTC'",),
    "mysql": ("SET SESSION TRANSACTION READ ONLY", "SET time_zone = '+00:00'"),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY", "SET time_zone = '+00:00'"),
}
# What drivers call the seconds that a connection may take.
_DEADLINES = {
    "psycopg": "connect_timeout", "psycopg2": "connect_timeout", "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout", "mariadbconnector": "connect_timeout", "pymssql": "login_timeout",
    "mysqlconnector": "connection_timeout", "pyodbc": "timeout", "oracledb": "tcp_connect_timeout",
}  # fmt: skip
# So that a server which is gone is noticed: libpq would wait for two hours.
_ALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_MESSAGE = 400  # characters of a driver's message


class Driver(Protocol):
    """What differs between SQLAlchemy and DuckDB."""

    dialect: str
    quotes: tuple[str, str]

    def run(self, sql: str, values: Sequence[Any], batch: int) -> tuple[list[str], Parts]:
        """(names of the columns, rows); each of `values` takes the place of one `PARAMETER`."""
        ...


def _said(error: BaseException, secrets: Sequence[str] = ()) -> str:
    """A driver's message on one line, without the password."""
    text = shorten(" ".join(str(error).split()) or type(error).__name__, _MESSAGE)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _file(url: str, path: str, where: str) -> str:
    """The path of the file of a database, which is there: the packages would make an empty one."""
    if os.path.isfile(path):
        return os.path.abspath(path)
    hint = ""
    if os.path.isfile(f"/{path}"):
        hint = f"; an absolute path needs a slash more: {url.partition(':')[0]}:////{path}"
    raise StorageError(f"{where}: there is no file {path}{hint}")


class _SqlAlchemy:
    """A connection of SQLAlchemy."""

    def __init__(self, module: ModuleType, connection: Any, where: str, secrets: Sequence[str]) -> None:
        self._module, self._connection, self._where, self._secrets = module, connection, where, secrets
        self.dialect = str(connection.dialect.name)
        preparer = connection.dialect.identifier_preparer
        self.quotes = (preparer.initial_quote, preparer.final_quote)
        self._style = str(connection.dialect.paramstyle)
        self.results: list[Any] = []

    def run(self, sql: str, values: Sequence[Any], batch: int) -> tuple[list[str], Parts]:
        given: dict[str, Any] | tuple[Any, ...] | None = None
        if values:
            pieces = (sql.replace("%", "%%") if "format" in self._style else sql).split(PARAMETER)
            marks = (*(_MARKS[self._style](number) for number in range(len(values))), "")
            sql = "".join(piece + mark for piece, mark in zip(pieces, marks, strict=True))
            named = self._style in ("pyformat", "named")
            given = {f"p{number}": value for number, value in enumerate(values)} if named else tuple(values)
        with self._explained():
            result = self._connection.exec_driver_sql(
                sql, given, execution_options={"stream_results": True, "yield_per": batch}
            )
            self.results.append(result)
            # Not `keys()`, which shortens the names of SQLite.
            names = [column[0] for column in result.cursor.description or ()]
        return names, self._parts(result, batch)

    def _parts(self, result: Any, batch: int) -> Parts:
        with contextlib.closing(result):
            while True:
                with self._explained():
                    part = result.fetchmany(batch)
                if not part:
                    return
                yield part

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._module.exc.DBAPIError as error:
            kind = StorageError if error.connection_invalidated else SourceError
            raise kind(f"{self._where}: {_said(error.orig or error, self._secrets)}") from None
        except Exception as error:  # noqa: BLE001 - drivers raise what they like for odd values
            said = f"{type(error).__name__}: {_said(error, self._secrets)}"
            raise SourceError(f"{self._where}: {said}") from None


@contextlib.contextmanager
def sqlalchemy_driver(url: str, where: str, seconds: float) -> Iterator[Driver]:
    """A connection of SQLAlchemy.

    Args:
        url: The database.
        where: The same for messages.
        seconds: How long a connection may take. libpq takes whole seconds, at least 2.
    """
    module = require("sqlalchemy", "sqlalchemy")
    try:
        parsed = module.make_url(re.sub(r"^postgres(?=[:+])", "postgresql", url))
        kind, name = parsed.get_backend_name(), parsed.get_driver_name()
    except module.exc.NoSuchModuleError as error:
        raise OptionError(f"{where}: {_said(error)}; install the package that brings it") from None
    except (module.exc.ArgumentError, ValueError):
        raise OptionError(
            f"{where}: no URL of a database: dialect+driver://user:password@host:port/name, with %XX for "
            "special letters in the password"
        ) from None
    except ImportError as error:
        raise MissingExtraError(_no_driver(where, error)) from None
    secrets = [text for text in {parsed.password or "", quote(parsed.password or "")} if len(text) > 2]
    options: dict[str, Any] = {"poolclass": importlib.import_module("sqlalchemy.pool").NullPool}
    if (kind, name) == ("sqlite", "pysqlite"):
        path = _file(url, parsed.database or "", where)
        options["creator"] = lambda: _sqlite(path, seconds)
    else:
        options["connect_args"] = _connect_args(name, seconds, parsed.query)
    execution: dict[str, Any] = {"no_parameters": True}
    if kind == "postgresql":
        execution |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    try:
        engine = module.create_engine(parsed, execution_options=execution, **options)
    except ImportError as error:
        raise MissingExtraError(_no_driver(where, error)) from None
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(engine.dispose)
            try:
                connection = stack.enter_context(engine.connect())
                for statement in _SETTINGS.get(kind, ()):
                    connection.exec_driver_sql(statement)
            except Exception as error:  # noqa: BLE001 - as drivers like
                text = _said(getattr(error, "orig", None) or error, secrets)
                raise StorageError(f"{where}: no connection to the database: {text}") from None
            driver = _SqlAlchemy(module, connection, where, secrets)
            # An exception may keep what reads them alive, and they have to be closed before the connection.
            stack.callback(lambda: [result.close() for result in driver.results])
            yield driver
    except ShardstreamError:
        raise
    except module.exc.DBAPIError as error:  # at the end of the transaction
        raise StorageError(f"{where}: {_said(error.orig or error, secrets)}") from None


def _no_driver(where: str, error: ImportError) -> str:
    return (
        f"{where}: the driver {error.name} is not installed: pip install {error.name}, or name another one "
        "in the URL, as in postgresql+psycopg://"
    )


def _connect_args(driver: str, seconds: float, given: Any) -> dict[str, Any]:
    """What a driver is told beside the URL, unless the URL says it."""
    args: dict[str, Any] = {}
    if driver in _DEADLINES:
        args[_DEADLINES[driver]] = max(1, math.ceil(seconds))
    if driver in ("psycopg", "psycopg2"):
        args |= _ALIVE
    return {name: value for name, value in args.items() if name not in given}


def _sqlite(path: str, seconds: float) -> sqlite3.Connection:
    # SQLAlchemy's pool hands a connection from thread to thread.
    connection = sqlite3.connect(
        f"file:{quote(path)}?mode=ro", uri=True, timeout=seconds, check_same_thread=False
    )
    connection.text_factory = _sqlite_text
    return connection


def _sqlite_text(data: bytes) -> str | bytes:
    """A text; SQLite does not check that it is UTF-8, and then the bytes are what there is."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


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
            raise SourceError(f"{self._where}: {_said(error)}") from None
        except Exception as error:  # noqa: BLE001 - for values that Python does not have
            raise SourceError(f"{self._where}: {type(error).__name__}: {_said(error)}") from None


@contextlib.contextmanager
def duckdb_driver(url: str, where: str) -> Iterator[Driver]:
    """A connection of DuckDB: duckdb:///PATH, or duckdb:// for a query over files.

    Args:
        url: The database.
        where: The same for messages.
    """
    module = require("duckdb", "duckdb")
    path = unquote(re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0]).removeprefix("/")
    # What does not fit into memory goes there, and not beside the database.
    config = {"temp_directory": os.path.join(tempfile.gettempdir(), f"shardstream-duckdb-{os.getuid()}")}
    if path not in ("", ":memory:"):
        path = _file(url, path, where)
    try:
        found = module.connect(path or ":memory:", read_only=path not in ("", ":memory:"), config=config)
    except Exception as error:  # noqa: BLE001 - as it likes
        raise StorageError(f"{where}: the database cannot be opened: {_said(error)}") from None
    with contextlib.closing(found):
        yield _DuckDb(module, found, where)
