"""Databases: what becomes a sample, what is refused, and a table that changes while it is packed."""

from __future__ import annotations

import hashlib
import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import MissingExtraError, OptionError, SourceError, StorageError
from shardstream.packing.sources import Reject, Sample, SourceOptions, make_source
from shardstream.packing.sources.base import prepared
from shardstream.storage.inputs import expand
from shardstream.testing.sources import read_source
from tests.postgres import PASSWORD, Postgres
from tests.servers import free_ports

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
        import tempfile

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


class TestKeys:
    def rows(self) -> list[tuple[int | None, str]]:
        return [(1, "a"), (2, "b"), (2, "c"), (3, "d"), (None, "e"), (2, "f"), (None, "g")]

    def test_null_and_repeated_keys_are_rejects(self, tmp_path: Path) -> None:
        url = database(tmp_path / "a.db", self.rows())
        where = f"{url}, id="
        for target in (1, 1 << 40):
            assert [item.where.removeprefix(where) for item in read(url, target=target)] == [
                "1", "2", "2", "2", "3", "NULL", "NULL"
            ]  # fmt: skip
        with pytest.raises(SourceError, match=r"a\.db, id=2: 3 rows have this key"):
            ss.pack(url, tmp_path / "out", query=ALL, key="id")
        manifest = ss.pack(url, tmp_path / "skip", query=ALL, key="id", on_error="skip", max_rejects=0.8)
        assert (manifest.samples, manifest.provenance["rejected"]) == (2, 5)
        listed = [json.loads(line) for line in (tmp_path / "skip" / "rejects.jsonl").read_text().splitlines()]
        assert [row["reason"] for row in listed[2:4]] == [
            "3 rows have this key; a key names one row", "no key; row 1 of 2 such"
        ]  # fmt: skip

    def test_nothing_but_null(self, tmp_path: Path) -> None:
        url = database(tmp_path / "a.db", [(None, "a")])
        with pytest.raises(SourceError, match="id=NULL: no key; row 1 of 1 such"):
            ss.pack(url, tmp_path / "out", query=ALL, key="id")

    def test_no_rows(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no samples were found"):
            ss.pack(database(tmp_path / "a.db", []), tmp_path / "out", query=ALL, key="id")

    @pytest.mark.parametrize(("value", "kind"), [(1.5, "float"), (b"k", "bytes")])
    def test_other_types_are_refused(self, tmp_path: Path, value: object, kind: str) -> None:
        url = database(tmp_path / "a.db", [(value, "a")], "id, text")
        with pytest.raises(SourceError, match=f"is a {kind}; a key is text, a whole number or a UUID: cast"):
            read(url)

    def test_an_empty_key_is_a_reject(self, tmp_path: Path) -> None:
        (found,) = read(database(tmp_path / "a.db", [("", "a")], "id TEXT, text TEXT"))
        assert isinstance(found, Reject)
        assert "'id' is '', which is no key" in found.reason


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


class TestChanges:
    STATEMENTS = (
        "DELETE FROM docs WHERE id = 1500",
        "INSERT INTO docs VALUES (-1, 'before all')",
        "INSERT INTO docs VALUES (999999, 'behind all')",
        "UPDATE docs SET id = 5000 WHERE id = 1500",
        "ALTER TABLE docs ADD COLUMN more TEXT",
    )

    @pytest.mark.parametrize("statement", STATEMENTS)
    @pytest.mark.parametrize("on_error", ["raise", "skip"])
    def test_between_the_plan_and_the_end(self, tmp_path: Path, statement: str, on_error: Any) -> None:
        url = numbered(tmp_path / "a.db")

        def change(progress: ss.Progress) -> None:
            if not progress.done_tasks:  # it is called before the first task, too
                changed(url, statement)

        with pytest.raises(SourceError, match=r"the table was changed while it was packed: .*pack again"):
            ss.pack(
                url, tmp_path / "out", query=ALL, key="id", workers=1, shard_size="64KiB", on_error=on_error,
                progress=change,
            )  # fmt: skip
        assert not (tmp_path / "out" / "manifest.json").exists()

    def test_a_row_without_a_key_is_noticed(self, tmp_path: Path) -> None:
        url = database(tmp_path / "a.db", [(1, "a")])
        files = expand([url])
        source = prepared(make_source("sql", SourceOptions(query=ALL, key="id")), files)
        (task,) = source.plan(files, 1 << 20)
        changed(url, "INSERT INTO docs VALUES (NULL, 'b')")
        with pytest.raises(SourceError, match="0 rows had no key, 1 have none"):
            list(source.read(task))

    def interrupted(self, url: str, dest: Path, **options: Any) -> None:
        def stop(progress: ss.Progress) -> None:
            if progress.done_tasks == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ss.pack(url, dest, query=ALL, key="id", workers=1, shard_size="64KiB", progress=stop, **options)

    def test_resume(self, tmp_path: Path) -> None:
        url = numbered(tmp_path / "a.db")
        told: dict[str, Any] = {"query": ALL, "key": "id", "workers": 1, "shard_size": "64KiB"}
        whole = ss.pack(url, tmp_path / "whole", **told)
        self.interrupted(url, tmp_path / "out")
        assert ss.pack(url, tmp_path / "out", resume=True, **told).fingerprint == whole.fingerprint

    @pytest.mark.parametrize("statement", STATEMENTS[:4])
    def test_resume_of_a_table_that_changed(self, tmp_path: Path, statement: str) -> None:
        url = numbered(tmp_path / "a.db")
        self.interrupted(url, tmp_path / "out")
        changed(url, statement)
        with pytest.raises(OptionError, match="or what is in the sources was changed"):
            ss.pack(url, tmp_path / "out", query=ALL, key="id", workers=1, shard_size="64KiB", resume=True)

    def test_a_writer_at_work_elsewhere_in_the_file(self, tmp_path: Path) -> None:
        url = numbered(tmp_path / "a.db")
        with sqlite3.connect(tmp_path / "a.db") as writer:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("CREATE TABLE other (n)")
            writer.execute("INSERT INTO other VALUES (1)")  # a transaction that is not committed
            assert ss.pack(url, tmp_path / "out", query=ALL, key="id").samples == 2000
        writer.close()

    def test_duckdb_in_other_hands(self, tmp_path: Path) -> None:
        path = tmp_path / "a.duckdb"
        with duckdb.connect(str(path)) as connection:
            connection.execute("CREATE TABLE docs AS SELECT 1 AS id, 'a' AS text")
            with pytest.raises(StorageError, match=r"a\.duckdb: the database cannot be opened"):
                read(f"duckdb:///{path}")
        assert len(read(f"duckdb:///{path}")) == 1


class TestServers:
    def test_nobody_listens(self, tmp_path: Path) -> None:
        [port] = free_ports(1)
        url = f"postgresql+psycopg://packer:hidden-word@127.0.0.1:{port}/x"
        with pytest.raises(StorageError, match=rf"127\.0\.0\.1:{port}/x: no connection") as caught:
            ss.pack(url, tmp_path / "out", query=ALL, key="id", on_error="skip")
        assert "hidden-word" not in str(caught.value)

    def test_somebody_listens_who_never_answers(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"postgresql+psycopg://packer:hidden-word@127.0.0.1:{silent.getsockname()[1]}/x"
            options = {"timeouts": ss.Timeouts(connect=1)}
            with pytest.raises(StorageError, match=r"no connection to the database: .*timeout"):
                ss.pack(url, tmp_path / "out", query=ALL, key="id", storage_options=options)

    def test_a_wrong_password(self, postgres: Postgres, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="password authentication failed") as caught:
            ss.pack(postgres.database("hidden-word"), tmp_path / "out", query=ALL, key="id")
        assert "hidden-word" not in str(caught.value)

    def test_a_server_that_goes_while_it_is_read(self, postgres: Postgres, tmp_path: Path) -> None:
        query = "SELECT i AS id, repeat('x', 10000) AS text FROM generate_series(1, 5000) i"
        files = expand([postgres.database()])
        source = prepared(make_source("sql", SourceOptions(query=query, key="id")), files)
        (task,) = source.plan(files, 1 << 40)
        reading = iter(source.read(task))
        next(reading)
        with postgres.connect() as other:
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            other.execute(f"{ended} AND usename = 'packer'")
        with pytest.raises(StorageError, match=r"postgres: "):
            list(reading)

    def test_the_password_is_nowhere(self, postgres: Postgres, tmp_path: Path) -> None:
        url = postgres.database()
        query = "SELECT i AS id, repeat('x', 1000) AS text FROM generate_series(1, 500) i"
        told: dict[str, Any] = {"query": query, "key": "id", "shard_size": "64KiB"}

        def stop(progress: ss.Progress) -> None:
            if progress.done_tasks == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ss.pack(url, tmp_path / "out", progress=stop, workers=1, **told)
        self.check(url, tmp_path / "out")
        ss.pack(url, tmp_path / "out", resume=True, workers=2, **told)
        self.check(url, tmp_path / "out")

    def check(self, url: str, dest: Path) -> None:
        secret = url.partition("packer:")[2].partition("@")[0]
        for path in dest.rglob("*"):
            data = path.read_bytes() if path.is_file() else b""
            assert PASSWORD.encode() not in data
            assert secret.encode() not in data
