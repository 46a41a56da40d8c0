"""Connections of SQLAlchemy, which only read.

The text of a query goes to the driver as it is: SQLAlchemy would take `:name` within it for a parameter.
What drivers raise is told without its traceback, in which passwords may be.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import queue
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import quote

from shardstream.errors import (
    MissingExtraError,
    OptionError,
    ShardstreamError,
    SourceError,
    StorageError,
    require,
)
from shardstream.packing.sources.sql_drivers import PARAMETER, Driver, Parts, file_of, parts_of, said

__all__ = ["sqlalchemy_driver"]

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
# The packages of drivers, where their names are others.
_PACKAGES = {"MySQLdb": "mysqlclient", "mysql": "mysql-connector-python"}
# So that a server which is gone is noticed: libpq would wait for two hours.
_ALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


class _SqlAlchemy:
    """A connection of SQLAlchemy."""

    def __init__(self, module: ModuleType, connection: Any, where: str, secrets: Sequence[str]) -> None:
        self._module, self._connection, self._where, self._secrets = module, connection, where, secrets
        self.dialect = str(connection.dialect.name)
        preparer = connection.dialect.identifier_preparer
        self.quotes = (preparer.initial_quote, preparer.final_quote)
        self._style = str(connection.dialect.paramstyle)
        self._result: Any = None

    def run(self, sql: str, values: Sequence[Any], batch: int) -> tuple[list[str], Parts]:
        given: dict[str, Any] | tuple[Any, ...] | None = None
        if values:
            pieces = (sql.replace("%", "%%") if "format" in self._style else sql).split(PARAMETER)
            marks = (*(_MARKS[self._style](number) for number in range(len(values))), "")
            sql = "".join(piece + mark for piece, mark in zip(pieces, marks, strict=True))
            named = self._style in ("pyformat", "named")
            given = {f"p{number}": value for number, value in enumerate(values)} if named else tuple(values)
        self.close()
        with self._explained():
            result = self._connection.exec_driver_sql(
                sql, given, execution_options={"stream_results": True, "yield_per": batch}
            )
            self._result = result
            # Not `keys()`, which shortens the names of SQLite.
            names = [column[0] for column in result.cursor.description or ()]
        return names, parts_of(result, batch, self._explained)

    def exact(self, sql: str, names: Sequence[str]) -> dict[str, str]:
        return {}

    def close(self) -> None:
        """Be done with the last result: some drivers have one at a time, and an error keeps it alive."""
        result, self._result = self._result, None
        if result is not None:
            with self._explained():
                result.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._module.exc.DBAPIError as error:
            kind = StorageError if error.connection_invalidated else SourceError
            raise kind(f"{self._where}: {said(error.orig or error, self._secrets)}") from None
        except Exception as error:  # noqa: BLE001 - drivers raise what they like for odd values
            what = f"{type(error).__name__}: {said(error, self._secrets)}"
            raise SourceError(f"{self._where}: {what}") from None


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
        raise OptionError(f"{where}: {said(error)}; install the package that brings it") from None
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
        path = file_of(url, parsed.database or "", where)
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
                connection = stack.enter_context(_connected(engine, _SETTINGS.get(kind, ()), seconds))
            except Exception as error:  # noqa: BLE001 - as drivers like
                text = said(getattr(error, "orig", None) or error, secrets)
                raise StorageError(f"{where}: no connection to the database: {text}") from None
            driver = _SqlAlchemy(module, connection, where, secrets)
            stack.callback(driver.close)
            yield driver
    except ShardstreamError:
        raise
    except module.exc.DBAPIError as error:  # at the end of the transaction
        raise StorageError(f"{where}: {said(error.orig or error, secrets)}") from None


def _connected(engine: Any, statements: Sequence[str], seconds: float) -> Any:
    """A connection, for which these statements were run.

    Many drivers wait for ever if a server accepts the connection and then says nothing. So this happens in a
    thread, which is left alone when it takes longer than the driver should.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    late = threading.Event()

    def connect() -> None:
        try:
            connection = engine.connect()
            for statement in statements:
                connection.exec_driver_sql(statement)
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            answers.put(error)
            return
        answers.put(connection)
        if late.is_set():
            connection.close()

    threading.Thread(target=connect, name="shardstream-sql", daemon=True).start()
    try:
        found = answers.get(timeout=2 * seconds + 2)
    except queue.Empty:
        late.set()
        raise TimeoutError(f"no answer in {2 * seconds + 2:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def _no_driver(where: str, error: ImportError) -> str:
    package = _PACKAGES.get(str(error.name), error.name)
    other = "mysql+pymysql" if package in ("mysqlclient", "mysql-connector-python") else "postgresql+psycopg"
    return (
        f"{where}: the driver {error.name} is not installed: pip install {package}, or name another one "
        f"in the URL, as in {other}://"
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
