"""The contract of sources, for queries over real databases."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import duckdb
import pytest

from shardstream.errors import SourceError, StorageError
from shardstream.packing.sources import Source, SourceOptions, make_source
from shardstream.packing.sources.base import prepared, sized
from shardstream.storage.inputs import FileInfo, expand
from shardstream.testing import SourceContract
from shardstream.testing.sources import Samples
from tests.postgres import Postgres

ROWS = [(number * 7, f"k{number:03d}", f"row {number} ✓" * (number % 4), number / 3) for number in range(10)]
CREATE = "CREATE TABLE docs (id BIGINT, name VARCHAR, text VARCHAR, score DOUBLE PRECISION)"


def source_of(url: str, **options: Any) -> Source:
    options = {"query": "SELECT * FROM docs", "key": "id", "keep": ("score",), **options}
    return prepared(make_source("sql", SourceOptions(**options)), expand([url]))


def expected_samples(key: int) -> Samples:
    return [
        (str(row[key]), {"txt": row[2].encode(), "json": f'{{"score":{row[3]!r}}}'.encode()}) for row in ROWS
    ]


class DatabaseContract(SourceContract):
    """What differs: a database is named by a URL, and knows its size after the keys were read."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        raise NotImplementedError

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        return tmp_path  # not used: `files` says it

    @pytest.fixture
    def files(self, url: str, source: Source) -> list[FileInfo]:
        return sized(source, expand([url]))

    @pytest.fixture
    def expected(self) -> Samples:
        return expected_samples(0)

    def test_a_file_that_is_gone_is_an_error_that_names_it(
        self, source: Source, files: list[FileInfo]
    ) -> None:
        tasks = source.plan(files, 1)
        path = Path("/" + files[0].url.partition(":////")[2])
        path.unlink()
        for task in tasks:
            with pytest.raises(StorageError, match=path.name):
                list(source.read(task))
        assert not path.exists()  # sqlite3 and duckdb would make an empty database


class TestSqlite(DatabaseContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        with sqlite3.connect(tmp_path / "docs.sqlite") as connection:
            connection.execute(CREATE)
            connection.executemany("INSERT INTO docs VALUES (?, ?, ?, ?)", reversed(ROWS))
        connection.close()
        return f"sqlite:///{tmp_path}/docs.sqlite"

    @pytest.fixture
    def source(self, url: str) -> Source:
        return source_of(url)


class TestTextKeys(TestSqlite):
    """Keys of text, in a column that compares without regard to case."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        with sqlite3.connect(tmp_path / "docs.sqlite") as connection:
            connection.execute(CREATE.replace("name VARCHAR", "name VARCHAR COLLATE NOCASE"))
            connection.executemany("INSERT INTO docs VALUES (?, ?, ?, ?)", reversed(ROWS))
        connection.close()
        return f"sqlite:///{tmp_path}/docs.sqlite"

    @pytest.fixture
    def source(self, url: str) -> Source:
        return source_of(url, key="name")

    @pytest.fixture
    def expected(self) -> Samples:
        return expected_samples(1)


class TestDuckDb(DatabaseContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        with duckdb.connect(str(tmp_path / "docs.duckdb")) as connection:
            connection.execute(CREATE)
            connection.executemany("INSERT INTO docs VALUES (?, ?, ?, ?)", ROWS[::-1])
        return f"duckdb:///{tmp_path}/docs.duckdb"

    @pytest.fixture
    def source(self, url: str) -> Source:
        return source_of(url)


class TestPostgres(DatabaseContract):
    @pytest.fixture
    def url(self, postgres: Postgres) -> str:
        with postgres.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS docs")
            connection.execute(CREATE)
            connection.cursor().executemany("INSERT INTO docs VALUES (%s, %s, %s, %s)", ROWS[::-1])
        return postgres.database()

    @pytest.fixture
    def source(self, url: str) -> Source:
        return source_of(url)

    def test_a_file_that_is_gone_is_an_error_that_names_it(
        self, source: Source, files: list[FileInfo], postgres: Postgres
    ) -> None:
        """A table."""
        tasks = source.plan(files, 1)
        with postgres.connect() as connection:
            connection.execute("DROP TABLE docs")
        for task in tasks[:3]:
            with pytest.raises(SourceError, match='postgres: relation "docs" does not exist'):
                list(source.read(task))
