"""Keys of databases; databases that change while they are packed, that others use, and that do not answer."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import duckdb
import pytest

import shardstream as ss
from shardstream.errors import OptionError, SourceError, StorageError
from shardstream.packing.sources import Reject, Sample, SourceOptions, make_source
from shardstream.packing.sources.base import prepared
from shardstream.storage.inputs import expand
from tests.packing.databases import ALL, changed, database, numbered, read
from tests.postgres import PASSWORD, Postgres
from tests.servers import free_ports


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

    def test_keys_in_the_order_of_a_language(self, postgres: Postgres) -> None:
        keys = ["a", "A", "B", "b", "é", "e", "f", "z ", "z", "Z", "ß", "10", "9", "-", "数"]
        values = ", ".join(f"('{key}', 't')" for key in keys)
        query = f'SELECT k COLLATE "en-x-icu" AS k, text FROM (VALUES {values}) AS docs(k, text)'
        for target in (1, 5, 1 << 40):
            found = [item.key for item in read(postgres.database(), query, target, key="k")]
            assert sorted(found) == sorted(keys)
            assert found.index("a") < found.index("A") < found.index("b") < found.index("B")

    @pytest.mark.parametrize("kind", ["VARCHAR COLLATE NOCASE", "ENUM('b', 'a', 'B', 'A')"])
    def test_duckdb_keys_that_are_not_ordered_by_their_bytes(self, tmp_path: Path, kind: str) -> None:
        with duckdb.connect(str(tmp_path / "a.db")) as connection:
            connection.execute(f"CREATE TABLE docs (id {kind}, text VARCHAR)")
            connection.execute("INSERT INTO docs SELECT unnest(['a', 'A', 'a', 'B', 'b']), 't'")
        for target in (1, 1 << 40):
            found = read(f"duckdb:///{tmp_path / 'a.db'}", target=target)
            assert [item.where[-3:] for item in found] == ["'A'", "'B'", "'a'", "'a'", "'b'"]
            assert [type(item) for item in found] == [Sample, Sample, Reject, Reject, Sample]

    def test_nothing_but_null(self, tmp_path: Path) -> None:
        url = database(tmp_path / "a.db", [(None, "a")])
        with pytest.raises(SourceError, match="id=NULL: no key; row 1 of 1 such"):
            ss.pack(url, tmp_path / "out", query=ALL, key="id")

    def test_no_rows(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"a\.db: the query gave no rows: no samples"):
            ss.pack(database(tmp_path / "a.db", []), tmp_path / "out", query=ALL, key="id")

    @pytest.mark.parametrize(("value", "kind"), [(1.5, "float"), (b"k", "bytes")])
    def test_other_types_are_refused(self, tmp_path: Path, value: object, kind: str) -> None:
        url = database(tmp_path / "a.db", [(value, "a")], "id, text")
        with pytest.raises(SourceError, match=f"is a {kind}; a key is text, a whole number or a UUID: cast"):
            read(url)

    def test_keys_of_two_types_are_refused(self, tmp_path: Path) -> None:
        url = database(tmp_path / "a.db", [(5, "a"), ("5", "b"), (6, "c")], "id, text")
        with pytest.raises(SourceError, match=r"the key '5' is a str, and others are a int; .*: cast it"):
            read(url, target=1)
        found = read(url, "SELECT CAST(id AS TEXT) AS id, text FROM docs")
        assert [type(item) for item in found] == [Reject, Reject, Sample]

    def test_an_empty_key_is_a_reject(self, tmp_path: Path) -> None:
        (found,) = read(database(tmp_path / "a.db", [("", "a")], "id TEXT, text TEXT"))
        assert isinstance(found, Reject)
        assert "'id' is '', which is no key" in found.reason


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
        with pytest.raises(OptionError, match="start again without it, as also if a source was changed"):
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

    def test_a_driver_that_would_wait(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            url = f"postgresql+psycopg://packer:hidden-word@{address}/x?connect_timeout=600"
            options = {"timeouts": ss.Timeouts(connect=0.2)}
            with pytest.raises(StorageError, match=rf"{address}/x: no connection .*: no answer in 2\.4 s"):
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
