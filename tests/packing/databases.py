"""Databases to pack, and what a source reads of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import shardstream as ss
from shardstream.packing.sources import Reject, Sample, SourceOptions, make_source
from shardstream.storage.inputs import expand
from shardstream.testing.sources import read_source

ALL = "SELECT * FROM docs"
PNG = b"\x89PNG\r\n\x1a\n png"


def database(path: Path, rows: Iterable[Sequence[Any]], columns: str = "id INTEGER, text TEXT") -> str:
    """A database of SQLite with a table docs; returns its URL."""
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE docs ({columns})")
        marks = ", ".join("?" * len(columns.split(", ")))
        connection.executemany(f"INSERT INTO docs VALUES ({marks})", rows)
    connection.close()
    return f"sqlite:///{path}"


def changed(url: str, statement: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute(statement)
    connection.close()


def numbered(path: Path, count: int = 2000) -> str:
    rows = [(number, f"text {number} " + "x" * (number % 300)) for number in range(count)]
    return database(path, rows, "id INTEGER PRIMARY KEY, text TEXT")


def samples(dest: Path) -> list[dict[str, Any]]:
    ds = ss.StreamingDataset(str(dest), shuffle=False, decode=False)
    return [{name: v if isinstance(v, str) else bytes(v) for name, v in each.items()} for each in ds]


def read(url: str, query: str = ALL, target: int = 1 << 40, **options: Any) -> list[Sample | Reject]:
    source = make_source("sql", SourceOptions(**{"query": query, "key": "id", **options}))
    return read_source(source, expand([url]), target)
