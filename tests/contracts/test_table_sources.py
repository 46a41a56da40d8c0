"""The contract of sources, for tables: files of pyarrow, and of Python's own csv and json."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from shardstream.packing.sources import Source, SourceOptions, make_source
from shardstream.storage.inputs import FileInfo
from shardstream.testing import SourceContract
from shardstream.testing.sources import Samples

ROWS: list[dict[str, Any]] = [
    {"id": f"r{number}", "text": f'row {number}, ✓ "q" ' * (number % 4), "n": number, "meta": {"lang": "en"}}
    for number in range(50)
]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def sample(row: dict[str, Any], **more: bytes) -> tuple[str, dict[str, bytes]]:
    kept = {name: value for name, value in row.items() if name != "text"}
    rest = json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()
    return row["id"], {"txt": row["text"].encode(), **more, "json": rest}


class TestParquet(SourceContract):
    @pytest.fixture
    def source(self) -> Source:
        return make_source("parquet")

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> list[Path]:
        pyarrow.parquet.write_table(table(ROWS[:30]), tmp_path / "a.parquet", row_group_size=7)
        pyarrow.parquet.write_table(table(ROWS[30:]), tmp_path / "b.parquet", compression="zstd")
        return [tmp_path / "a.parquet", tmp_path / "b.parquet"]

    @pytest.fixture
    def expected(self) -> Samples:
        return [sample(row) for row in ROWS]


class TestParquetWithImages(SourceContract):
    """Columns by name, and a nested one, as in datasets of a hub."""

    @pytest.fixture
    def source(self) -> Source:
        column = (("jpg", "image.bytes"), ("txt", "text"))
        return make_source("parquet", SourceOptions(column=column, keep=("meta.lang", "n"), key="n"))

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        rows = [{**row, "image": {"bytes": b"\xff\xd8\xff" * row["n"], "path": "x.jpg"}} for row in ROWS]
        pyarrow.parquet.write_table(table(rows), tmp_path / "a.parquet", row_group_size=20)
        return tmp_path / "a.parquet"

    @pytest.fixture
    def expected(self) -> Samples:
        return [
            (
                str(row["n"]),
                {
                    "jpg": b"\xff\xd8\xff" * row["n"],
                    "txt": row["text"].encode(),
                    "json": b'{"meta.lang":"en","n":%d}' % row["n"],
                },
            )
            for row in ROWS
        ]


class TestArrow(SourceContract):
    @pytest.fixture
    def source(self) -> Source:
        return make_source("arrow")

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> list[Path]:
        for name, new, rows in (
            ("a", pyarrow.ipc.new_file, ROWS[:30]),
            ("b", pyarrow.ipc.new_stream, ROWS[30:]),
        ):
            found = table(rows)
            with new(tmp_path / f"{name}.arrow", found.schema) as writer:
                writer.write_table(found, max_chunksize=8)
        return [tmp_path / "a.arrow", tmp_path / "b.arrow"]

    @pytest.fixture
    def expected(self) -> Samples:
        return [sample(row) for row in ROWS]


class TestArrowWithDictionaries(SourceContract):
    """Columns whose values are in dictionaries, which come before the batches or, in a stream, again."""

    @pytest.fixture(params=["file", "stream"])
    def source(self, request: pytest.FixtureRequest) -> Source:
        self.new = {"file": pyarrow.ipc.new_file, "stream": pyarrow.ipc.new_stream}[request.param]
        return make_source("arrow", SourceOptions(keep=("lang",)))

    @pytest.fixture
    def inputs(self, source: Source, tmp_path: Path) -> Path:
        texts = pa.array([row["text"] for row in ROWS])
        langs = pa.array(["en", "de"] * 25).dictionary_encode()
        found = pa.table({"id": [row["id"] for row in ROWS], "text": texts, "lang": langs})
        with self.new(tmp_path / "a.arrow", found.schema) as writer:
            for begin in range(0, 50, 10):
                writer.write_table(found.slice(begin, 10).unify_dictionaries())
        return tmp_path / "a.arrow"

    @pytest.fixture
    def expected(self) -> Samples:
        return [
            (row["id"], {"txt": row["text"].encode(), "json": b'{"lang":"%s"}' % (b"en", b"de")[number % 2]})
            for number, row in enumerate(ROWS)
        ]


class TestHf(SourceContract):
    """A dict of datasets, as `save_to_disk` of the package datasets 5 writes it."""

    @pytest.fixture
    def source(self) -> Source:
        return make_source("hf")

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        found = table(ROWS)
        for split, begin, count in (("test", 0, 1), ("train", 10, 2)):
            folder = tmp_path / "saved" / split
            folder.mkdir(parents=True)
            names = [f"data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]
            for number, name in enumerate(names):
                with pyarrow.ipc.new_stream(folder / name, found.schema) as writer:
                    rows = 20 if count > 1 else 10
                    writer.write_table(found.slice(begin + number * rows, rows), max_chunksize=6)
            (folder / "dataset_info.json").write_text("{}")
            state = {"_data_files": [{"filename": name} for name in names], "_split": split}
            (folder / "state.json").write_text(json.dumps(state))
        (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        return tmp_path / "saved"

    @pytest.fixture
    def expected(self) -> Samples:
        return [sample(row) for row in ROWS]

    def test_the_tasks_cover_each_file_once(self, source: Source, files: list[FileInfo], target: int) -> None:
        """Of the data: states are no input of tasks."""
        data = [file for file in files if file.url.endswith(".arrow")]
        spans = [span for task in source.plan(files, target) for span in task.files]
        assert sum(span.end - span.start for span in spans) == sum(file.size for file in data)
        assert {span.url for span in spans} == {file.url for file in data}


class TestCsv(SourceContract):
    """No value has a quotation mark, so that the file is cut into slices."""

    @pytest.fixture
    def source(self) -> Source:
        return make_source("csv", SourceOptions(keep=()))

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        lines = "".join(f"r{number},row {number} ✓\r\n" for number in range(50))
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,text\r\n" + lines.encode())
        return tmp_path / "a.csv"

    @pytest.fixture
    def expected(self) -> Samples:
        return [(f"r{number}", {"txt": f"row {number} ✓".encode()}) for number in range(50)]


class TestQuotedCsv(SourceContract):
    """Line breaks, separators and quotation marks within values."""

    @pytest.fixture
    def source(self) -> Source:
        return make_source("csv", SourceOptions(keep=("n",)))

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> list[Path]:
        for name, delimiter in (("a.csv", ","), ("b.tsv", "\t")):
            with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, delimiter=delimiter)
                writer.writerow(["id", "text", "n"])
                writer.writerows([name + row["id"], f'"{row["text"]}"\n,\t', row["n"]] for row in ROWS)
        return [tmp_path / "a.csv", tmp_path / "b.tsv"]

    @pytest.fixture
    def expected(self) -> Samples:
        return [
            (
                (name + row["id"]).replace(".", "%2E"),
                {"txt": f'"{row["text"]}"\n,\t'.encode(), "json": b'{"n":"%d"}' % row["n"]},
            )
            for name in ("a.csv", "b.tsv")
            for row in ROWS
        ]


class TestJson(SourceContract):
    """An array, objects one after another on several lines, and one object."""

    @pytest.fixture
    def source(self) -> Source:
        return make_source("json")

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> list[Path]:
        (tmp_path / "a.json").write_text(json.dumps(ROWS[:30], indent=2, ensure_ascii=False))
        (tmp_path / "b.json").write_text("\n".join(json.dumps(row, indent=1) for row in ROWS[30:49]))
        (tmp_path / "c.json").write_text(json.dumps(ROWS[49]))
        return [tmp_path / name for name in ("a.json", "b.json", "c.json")]

    @pytest.fixture
    def expected(self) -> Samples:
        return [sample(row) for row in ROWS]
