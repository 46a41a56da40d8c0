"""Values of databases: what becomes of each type, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import SourceError
from shardstream.packing.sources import Reject, Sample
from tests.packing.databases import ALL, PNG, database, numbered, read, samples
from tests.postgres import Postgres


class TestValues:
    def test_of_sqlite(self, tmp_path: Path) -> None:
        columns = "id TEXT, text TEXT, n INTEGER, x REAL, img BLOB, day DATE, empty TEXT"
        row = ("a/b", "one ✓", -(2**63), 1.5, PNG, "2024-01-01", None)
        ss.pack(database(tmp_path / "a.db", [row], columns), tmp_path / "out", query=ALL, key="id")
        (found,) = samples(tmp_path / "out")
        assert json.loads(found.pop("json")) == {
            "id": "a/b", "n": -(2**63), "x": 1.5, "day": "2024-01-01", "empty": None
        }  # fmt: skip
        assert found == {"__key__": "a/b", "txt": "one ✓".encode(), "png": PNG}

    def test_of_duckdb(self, tmp_path: Path) -> None:
        query = """
            SELECT 3 AS id, 'one' AS text, TRUE AS ok, 1.50::DECIMAL(9, 2) AS price, NULL AS nothing,
            DATE '2024-02-29' AS day, TIMESTAMP '2024-01-01 10:00:00' AS at, {'lang': 'en', 'n': 2} AS meta,
            [1, 2] AS ids, TIMESTAMPTZ '2024-01-01 10:00:00+02' AS zoned, '{"a": 1}'::JSON AS js,
            'nan'::DOUBLE AS nan, 170141183460469231731687303715884105727::HUGEINT AS huge,
            '00000000-0000-0000-0000-000000000001'::UUID AS u, 'ab'::BLOB AS raw -- the end
        ;"""
        ss.pack("duckdb://", tmp_path / "out", query=query, key="id", keep=["meta.lang", "ok", "price"])
        assert samples(tmp_path / "out") == [
            {
                "__key__": "3",
                "txt": b"one",
                "raw": b"ab",
                "json": b'{"meta.lang":"en","ok":true,"price":"1.50"}',
            }
        ]
        (found,) = read("duckdb://", query)
        assert isinstance(found, Sample)
        assert json.loads(found.fields["json"].replace(b"NaN", b'"NaN"')) == {
            "id": 3, "ok": True, "price": "1.50", "nothing": None, "day": "2024-02-29",
            "at": "2024-01-01T10:00:00", "meta": {"lang": "en", "n": 2}, "ids": [1, 2],
            "zoned": "2024-01-01T08:00:00Z", "js": '{"a": 1}', "nan": "NaN", "huge": 2**127 - 1,
            "u": "00000000-0000-0000-0000-000000000001",
        }  # fmt: skip

    def test_duckdb_is_in_utc_on_all_machines(self, tmp_path: Path) -> None:
        query = "SELECT 1 AS id, TIMESTAMPTZ '2024-01-01 23:00:00Z'::VARCHAR AS text"
        told = ["--format", "sql", "--query", query, "--key", "id", "--workers", "1"]
        command = [sys.executable, "-m", "shardstream", "pack", "duckdb://", str(tmp_path / "out"), *told]
        subprocess.run(command, env={**os.environ, "TZ": "America/New_York"}, check=True)
        assert samples(tmp_path / "out")[0]["txt"] == b"2024-01-01 23:00:00+00"

    def test_times_of_duckdb_that_python_does_not_have(self) -> None:
        query = """
            SELECT 1 AS id, 't' AS text, TIMESTAMP_NS '2024-01-01 10:00:00.123456789' AS ns,
            INTERVAL 1 MONTH AS "a ""month"" 'b", TIME_NS '10:00:00.123456789' AS time,
            DATE '9999-12-31' AS day"""
        (found,) = read("duckdb://", query)
        assert isinstance(found, Sample)
        assert json.loads(found.fields["json"]) == {
            "id": 1, "ns": "2024-01-01T10:00:00.123456789", "a \"month\" 'b": "1 month",
            "time": "10:00:00.123456789", "day": "9999-12-31",
        }  # fmt: skip
        with pytest.raises(SourceError, match="column 'a' has values of type TIMESTAMP_NS within it"):
            read("duckdb://", "SELECT 1 AS id, 't' AS text, [TIMESTAMP_NS '2024-01-01'] AS a")

    @pytest.mark.parametrize("kind", ["DATE", "TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMP_MS"])
    def test_infinity_of_duckdb_is_refused(self, kind: str) -> None:
        query = f"SELECT 1 AS id, 't' AS text, '-infinity'::{kind} AS a"
        with pytest.raises(SourceError, match="column 'a' has the value infinity, which is no time: cast it"):
            read("duckdb://", query)

    @pytest.mark.parametrize("name", ["text", "Text"])
    def test_two_columns_of_one_name(self, tmp_path: Path, name: str) -> None:
        query = f"SELECT 1 AS id, 'a' AS text, 'b' AS {name}"
        for url in (numbered(tmp_path / f"{name}.db", 1), "duckdb://"):
            with pytest.raises(SourceError, match="two columns of the query are called 'text'; rename one"):
                read(url, query)
            assert len(read(url, "SELECT 1 AS id, 'a' AS text, 'b' AS text_1")) == 1

    def test_of_postgres(self, postgres: Postgres, tmp_path: Path) -> None:
        query = """
            SELECT '00000000-0000-0000-0000-000000000001'::uuid AS id, 'one 50% :x' AS text, true AS ok,
            1.50::numeric AS price, '2024-02-29'::date AS day, '2024-01-01 10:00+02'::timestamptz AS at,
            '{"lang": "en"}'::jsonb AS meta, '\\x89504e470d0a1a0a'::bytea AS img, '{1,2}'::int[] AS ids"""
        ss.pack(postgres.database(), tmp_path / "out", query=query, key="id")
        (found,) = samples(tmp_path / "out")
        assert json.loads(found.pop("json")) == {
            "id": "00000000-0000-0000-0000-000000000001", "ok": True, "price": "1.50", "day": "2024-02-29",
            "at": "2024-01-01T08:00:00Z", "meta": {"lang": "en"}, "ids": [1, 2],
        }  # fmt: skip
        key = "00000000-0000-0000-0000-000000000001"
        assert found == {"__key__": key, "txt": b"one 50% :x", "png": b"\x89PNG\r\n\x1a\n"}

    def test_values_that_python_does_not_have(self, postgres: Postgres) -> None:
        with pytest.raises(SourceError, match="postgres: timestamp too large"):
            read(postgres.database(), "SELECT 1 AS id, 't' AS text, 'infinity'::timestamp AS at")

    def test_names_that_have_to_be_quoted(self, tmp_path: Path) -> None:
        url = database(tmp_path / "a.db", [(1, 2, "t")], '"a ""b"" %s.c" INTEGER, ":n?" INTEGER, "text" TEXT')
        (found,) = read(url, key='a "b" %s.c')
        assert isinstance(found, Sample)
        assert (found.key, found.fields["json"]) == ("1", b'{"a \\"b\\" %s.c":1,":n?":2}')

    def test_names_that_have_to_be_quoted_for_a_server(self, postgres: Postgres) -> None:
        with pytest.raises(SourceError, match="two columns of the query are called 'id'"):
            read(postgres.database(), "SELECT 1 AS id, 2 AS id, 'a' AS text")
        (found,) = read(postgres.database(), """SELECT 1 AS "a ""b"" %s", 't' AS text""", key='a "b" %s')
        assert isinstance(found, Sample)
        assert found.key == "1"

    def test_text_that_is_not_utf8_stays_the_bytes_it_is(self, tmp_path: Path) -> None:
        query = "SELECT 1 AS id, CAST(x'61ff62' AS TEXT) AS text UNION ALL SELECT 2, 'b'"
        first, second = read(numbered(tmp_path / "a.db", 1), query, column=(("txt", "text"),))
        assert isinstance(first, Sample)
        assert isinstance(second, Sample)
        assert (first.fields["txt"], second.fields["txt"]) == (b"a\xffb", b"b")

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            (("a", "b", b"c"), "column 'v' is bytes, or text that is not UTF-8 here, and text in other rows"),
            ((1, 2, b"c"), "column 'v' is bytes, .* here, and neither text nor bytes in other rows"),
            ((PNG, PNG, "c"), "column 'v' is text here, and bytes, .* in other rows; cast it in the query"),
        ],
    )
    def test_a_value_of_another_kind_than_its_column(
        self, tmp_path: Path, values: tuple[Any, ...], reason: str
    ) -> None:
        rows = [(number, "t", value) for number, value in enumerate(values)]
        url = database(tmp_path / "a.db", rows, "id INTEGER, text TEXT, v")
        *others, last = read(url)
        assert all(isinstance(item, Sample) for item in others)
        assert isinstance(last, Reject)
        assert last.where == f"{url}, id=2"
        assert re.match(reason, last.reason)
        assert all(
            isinstance(item, Sample) for item in read(url, column=(("txt", "text"), ("v", "v")), keep=())
        )
        assert all(isinstance(item, Sample) for item in read(url, keep=("text",), column=(("txt", "text"),)))

    def test_a_column_that_is_null_at_first(self, tmp_path: Path) -> None:
        rows = [(number, f"t{number}", PNG if number == 70_000 else None) for number in range(70_001)]
        url = database(tmp_path / "a.db", rows, "id INTEGER PRIMARY KEY, text TEXT, img BLOB")
        found = read(url, "SELECT * FROM docs WHERE id > 69000")
        assert isinstance(found[-1], Sample)
        assert found[-1].fields["png"] == PNG
        assert found[0] == Reject(f"{url}, id=69001", "field '*' has no value")

    key = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
    value = st.one_of(
        st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=5)
    )

    @given(
        st.lists(st.tuples(key, key, value), min_size=1, max_size=20, unique_by=lambda row: row[0]),
        st.sampled_from([1, 20, 1 << 40]),
    )
    @settings(max_examples=25)
    def test_odd_values_and_keys_of_text(self, rows: list[tuple[str, str, Any]], target: int) -> None:
        self.check(rows, target, "id TEXT PRIMARY KEY COLLATE NOCASE, text TEXT, v")

    @given(
        st.lists(
            st.tuples(st.integers(-(2**63), 2**63 - 1), key, value),
            min_size=1, max_size=20, unique_by=lambda row: row[0],
        ),
        st.sampled_from([1, 20, 1 << 40]),
    )  # fmt: skip
    @settings(max_examples=25)
    def test_odd_values_and_keys_of_whole_numbers(
        self, rows: list[tuple[int, str, Any]], target: int
    ) -> None:
        self.check(rows, target, "id INTEGER PRIMARY KEY, text TEXT, v")

    def check(self, rows: list[tuple[Any, str, Any]], target: int, columns: str) -> None:
        # A NOCASE key would refuse keys that differ in case alone.
        columns = columns.replace("PRIMARY KEY COLLATE", "COLLATE")
        with tempfile.TemporaryDirectory() as folder:
            found = read(database(Path(folder) / "a.db", rows, columns), target=target)
        by_key = sorted(rows, key=lambda row: row[0].encode() if isinstance(row[0], str) else row[0])
        assert len(found) == len(by_key)
        for item, (key, text, value) in zip(found, by_key, strict=True):
            assert isinstance(item, Sample)
            assert item.fields["txt"] == text.encode()
            assert json.loads(item.fields["json"]) == {"id": key, "v": value}
