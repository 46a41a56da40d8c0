"""Databases: what becomes a sample, what is refused, and what is packed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import MissingExtraError, OptionError, SourceError, StorageError
from shardstream.packing.sources import Reject, Sample
from tests.packing.databases import ALL, PNG, database, numbered, read, samples
from tests.postgres import Postgres


class TestOptions:
    @pytest.mark.parametrize("key", [None, "none"])
    def test_a_key_is_asked_for(self, tmp_path: Path, key: str | None) -> None:
        with pytest.raises(OptionError, match="sql needs a key, as in --key id"):
            ss.pack(numbered(tmp_path / "a.db", 2), tmp_path / "out", query=ALL, key=key)

    @pytest.mark.parametrize("query", [None, "", " \n"])
    def test_a_query_is_asked_for(self, tmp_path: Path, query: str | None) -> None:
        with pytest.raises(OptionError, match="sql needs a query"):
            ss.pack(numbered(tmp_path / "a.db", 2), tmp_path / "out", query=query, key="id")

    def test_a_query_is_for_databases_alone(self, corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="query is for --format sql, not for jsonl"):
            ss.pack(corpus, tmp_path / "out", query=ALL)
        with pytest.raises(OptionError, match="no URL of a database"):
            ss.pack(corpus, tmp_path / "out", format="sql", query=ALL, key="id")

    def test_one_database_at_a_time(self, tmp_path: Path) -> None:
        urls = [numbered(tmp_path / name, 2) for name in ("a.db", "b.db")]
        with pytest.raises(OptionError, match="one database at a time"):
            ss.pack(urls, tmp_path / "out", query=ALL, key="id")

    def test_columns_that_are_not_there(self, tmp_path: Path) -> None:
        url = numbered(tmp_path / "a.db", 2)
        with pytest.raises(OptionError, match="no column 'n' for the key; it has 'id', 'text'"):
            read(url, key="n")
        with pytest.raises(SourceError, match=r"a\.db: there is no column 'lang'; there are 'id', 'text'"):
            read(url, keep=("lang",))
        with pytest.raises(SourceError, match=r"a\.db: no such column: other"):
            read(url, "SELECT other FROM docs")

    @pytest.mark.parametrize("name", ["sqlalchemy", "duckdb"])
    def test_what_is_not_installed_is_named(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, name, None)
        url = "duckdb://" if name == "duckdb" else numbered(tmp_path / "a.db", 2)
        with pytest.raises(MissingExtraError, match=rf"pip install 'shardstream\[{name}\]'"):
            read(url)

    def test_other_urls(self, tmp_path: Path) -> None:
        with pytest.raises(MissingExtraError, match="the driver psycopg2 is not installed"):
            read("postgresql+psycopg2://u:secret@127.0.0.1/x")
        with pytest.raises(OptionError, match=r"foo://127\.0\.0\.1/x: .*dialects:foo"):
            ss.pack("foo://u:secret@127.0.0.1/x", tmp_path / "out", format="sql", query=ALL, key="id")
        with pytest.raises(OptionError, match="no URL of a database"):
            read("postgresql://u:secret@h:99x/y")

    def test_a_path_with_a_slash_too_few(self, tmp_path: Path) -> None:
        url = numbered(tmp_path / "a.db", 2).replace(":////", ":///")
        with pytest.raises(StorageError, match=r"there is no file .*; an absolute path needs a slash more"):
            read(url)

    def test_other_paths(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match=r"sqlite://big\.db: three slashes begin a path"):
            read("sqlite://big.db")
        with pytest.raises(
            MissingExtraError, match=r"the driver MySQLdb .*: pip install mysqlclient, or .*pymysql"
        ):
            read("mysql://u@127.0.0.1/x")
        url = numbered(tmp_path / "a.db", 2)
        with pytest.raises(SourceError, match="this is a database of SQLite: begin its URL with sqlite://"):
            read(url.replace("sqlite", "duckdb"))
        with duckdb.connect(str(tmp_path / "b#1.db")) as connection:
            connection.execute("CREATE TABLE docs AS SELECT 1 AS id, 'a' AS text")
        for each in (url.replace("sqlite", "SQLite"), f"DUCKDB:///{tmp_path}/b#1.db?memory_limit=1GB"):
            assert ss.pack(each, tmp_path / each[:3], query=ALL, key="id").samples > 0
        with pytest.raises(
            OptionError, match="unknown parameter 'memory'; there are memory_limit and threads"
        ):
            read(f"duckdb:///{tmp_path}/b#1.db?memory=1")

    @pytest.mark.parametrize("url", ["sqlite", "duckdb://"])
    @pytest.mark.parametrize(
        "end", ["; ;", ";\n-- done; really\n", "; /* done */ ;", " -- done", "; -- 2\n-- 3"]
    )
    def test_what_ends_a_query(self, tmp_path: Path, url: str, end: str) -> None:
        url = numbered(tmp_path / "a.db", 1) if url == "sqlite" else url
        (found,) = read(url, f"SELECT 1 AS id, '; -- x' AS text{end}")
        assert isinstance(found, Sample)
        assert found.fields["txt"] == b"; -- x"
        (found,) = read(url, "SELECT text, 1 AS id FROM (SELECT 'a' AS text) q WHERE text <> '; -- x'")
        assert isinstance(found, Sample)


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


class TestPack:
    def test_the_same_bytes_for_any_number_of_workers(self, tmp_path: Path) -> None:
        url = numbered(tmp_path / "a.db")
        found = []
        for workers in (1, 2):
            dest = tmp_path / f"out{workers}"
            manifest = ss.pack(
                url, dest, query=ALL, key="id", workers=workers, shard_size="64KiB", keep=["id"]
            )
            assert len(manifest.shards) > 3
            found.append({path.name: path.read_bytes() for path in dest.iterdir()})
        assert found[0] == found[1]
        ds = ss.StreamingDataset(str(tmp_path / "out1"))
        assert len(ds.subset(where=lambda c: c["id"] < 10)) == 10

    def test_shuffle_tokens_limit_and_append(self, tmp_path: Path) -> None:
        url = numbered(tmp_path / "a.db")
        told: dict[str, Any] = {"query": ALL, "key": "id", "workers": 1, "shard_size": "64KiB"}
        ss.pack(url, tmp_path / "shuffled", shuffle=1, **told)
        keys = [each["__key__"] for each in samples(tmp_path / "shuffled")]
        assert keys != sorted(keys, key=int)
        assert sorted(keys, key=int) == [str(number) for number in range(2000)]
        tokens = ss.pack(url, tmp_path / "tokens", tokenizer="bytes", eos=256, keep=["id"], **told)
        assert (tokens.kind, tokens.samples) == ("tokens", 2000)
        assert ss.pack(url, tmp_path / "limited", limit=7, **told).samples == 7
        told["query"] = "SELECT id + 5000 AS id, text FROM docs"
        assert ss.pack(url, tmp_path / "limited", append=True, **told).samples == 2007

    def test_a_dry_run_knows_the_size(self, tmp_path: Path) -> None:
        url = numbered(tmp_path / "a.db")
        plan = ss.pack(url, tmp_path / "out", query=ALL, key="id", shard_size="64KiB", dry_run=True)
        assert (plan.format, plan.files, plan.keys) == ("sql", 1, "the value of id, as it is")
        assert plan.tasks > 3
        assert 200_000 < plan.input_bytes < 500_000  # of about 340,000: some rows are looked at

    def test_the_command(self, tmp_path: Path) -> None:
        url, dest = numbered(tmp_path / "a.db", 5), str(tmp_path / "out")
        told = ["--format", "sql", "--query", "SELECT id, text FROM docs;", "--key", "id", "--json"]
        command = [sys.executable, "-m", "shardstream", "pack", url, dest, *told]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["samples"] == 5

    def test_parquet_files_by_duckdb(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        with duckdb.connect() as connection:
            connection.execute(f"COPY (SELECT i AS id, 't' || i AS text FROM range(100) t(i)) TO '{path}'")
        query = f"SELECT * FROM '{path}' WHERE id % 2 = 0"
        assert ss.pack("duckdb://", tmp_path / "out", query=query, key="id").samples == 50

    @pytest.mark.parametrize(
        "query", ["DELETE FROM docs", "SELECT * FROM docs) q; DELETE FROM docs; --", "DROP TABLE docs"]
    )
    @pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
    def test_nothing_is_written(self, tmp_path: Path, query: str, kind: str) -> None:
        path = tmp_path / "a.db"
        if kind == "sqlite":
            numbered(path, 5)
        else:
            with duckdb.connect(str(path)) as connection:
                connection.execute("CREATE TABLE docs AS SELECT 1 AS id, 'a' AS text")
        before = hashlib.sha256(path.read_bytes()).digest()
        with pytest.raises(SourceError):
            read(f"{kind}:///{path}", query)
        read(f"{kind}:///{path}")
        assert hashlib.sha256(path.read_bytes()).digest() == before
        assert [each.name for each in tmp_path.iterdir()] == ["a.db"]

    def test_the_memory_of_duckdb_has_a_limit(self) -> None:
        query = "SELECT 1 AS id, current_setting('memory_limit') AS text"
        for url, limit in (("duckdb://", b"1.0 GiB"), ("duckdb://?memory_limit=300MiB", b"300.0 MiB")):
            (found,) = read(url, query)
            assert isinstance(found, Sample)
            assert found.fields["txt"] == limit
        with pytest.raises(SourceError, match=r"Say how much it may take with \?memory_limit=4GB behind"):
            read(
                "duckdb://?memory_limit=1MB",
                "SELECT i AS id, repeat('x', 1000) AS text FROM range(100000) t(i)",
            )

    def test_memory_does_not_grow_with_the_table(self, tmp_path: Path) -> None:
        rows = ((number, "x" * 4000) for number in range(40_000))
        url = database(tmp_path / "a.db", rows, "id INTEGER PRIMARY KEY, text TEXT")
        code = """
import resource, sys
from shardstream.packing.sources import SourceOptions, make_source
from shardstream.packing.sources.base import prepared
from shardstream.storage.inputs import expand

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

for query in ("SELECT * FROM docs LIMIT 100", "SELECT * FROM docs"):
    files = expand([sys.argv[1]])
    source = prepared(make_source("sql", SourceOptions(query=query, key="id")), files)
    print(sum(1 for task in source.plan(files, 1 << 40) for _ in source.read(task)), peak())
"""
        done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
        (few, before), (many, after) = (map(int, line.split()) for line in done.stdout.splitlines())
        assert (few, many) == (100, 40_000)
        assert after - before < 48  # MiB, of 160
