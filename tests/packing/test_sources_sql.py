"""Databases: the options, and what is packed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

import shardstream as ss
from shardstream.errors import MissingExtraError, OptionError, SourceError, StorageError
from shardstream.packing.sources import Sample
from tests.packing.databases import ALL, database, numbered, read, samples


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
