"""Tables as pyarrow, the csv module and Python's json write them, with each of their options."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from shardstream.read.reader import DatasetReader
from tests.packing.foreign.accounting import digests, packed

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ROWS: list[dict[str, Any]] = [
    {
        "id": f"r.{n}",
        "text": f'größe "{n}",\n數據 ✓' * (n % 3),
        "image": {"bytes": b"\x89PNG\r\n\x1a\n%d" % n, "path": None},
        "n": n - 5,
        "x": n / 3,
        "ok": n % 2 == 0,
        "tags": ["a"] * (n % 4),
        "none": None,
        "nested": {"a": {"b": [n]}},
    }
    for n in range(50)
]


def expected(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The fields of each row by key; of field json its value."""
    found = {}
    for row in rows:
        rest = {name: value for name, value in row.items() if name not in ("text", "image")}
        found[row["id"].replace(".", "%2E")] = {
            "txt": row["text"].encode(),
            "png": row["image"]["bytes"],
            "json": rest,
        }
    return found


def read(dest: Path) -> dict[str, dict[str, Any]]:
    """The samples; of field json its value."""
    return {
        key: {name: json.loads(data) if name == "json" else data for name, data in fields.items()}
        for key, fields in DatasetReader.open(str(dest)).iter_samples()
    }


PARQUET: dict[str, dict[str, Any]] = {
    **{
        f"compression {name}": {"compression": name}
        for name in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")
    },
    "no dictionary": {"use_dictionary": False},
    "version 1": {"version": "1.0"},
    "pages of version 2": {"data_page_version": "2.0"},
    "small pages": {"data_page_size": 64},
    "many groups": {"row_group_size": 3},
    "byte streams": {"use_byte_stream_split": ["x"], "use_dictionary": False},
    "delta": {
        "column_encoding": {"n": "DELTA_BINARY_PACKED", "text": "DELTA_LENGTH_BYTE_ARRAY"},
        "use_dictionary": False,
    },
    "checksums": {"write_page_checksum": True},
    "indexes": {"write_page_index": True},
    "no statistics": {"write_statistics": False},
}


@pytest.mark.parametrize("name", PARQUET)
def test_each_option_of_parquet(tmp_path: Path, name: str) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", **PARQUET[name])
    assert not packed(tmp_path / "a.parquet", tmp_path / "out").named
    assert read(tmp_path / "out") == expected(ROWS)


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
@pytest.mark.parametrize("kind", ["new_file", "new_stream"])
def test_each_kind_of_arrow_file(tmp_path: Path, kind: str, codec: str | None) -> None:
    import pyarrow.ipc

    table = pa.Table.from_pylist(ROWS)
    options = pyarrow.ipc.IpcWriteOptions(compression=codec)
    with getattr(pyarrow.ipc, kind)(tmp_path / "a.arrow", table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=7)
    assert not packed(tmp_path / "a.arrow", tmp_path / "out").named
    assert read(tmp_path / "out") == expected(ROWS)


def test_each_type_of_a_column_is_stored_or_refused_by_name(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, datetime.timezone.utc)
    columns: dict[str, Any] = {
        "i8": pa.array([1], pa.int8()),
        "u64": pa.array([2**64 - 1], pa.uint64()),
        "f16": pa.array([0.5], pa.float16()),
        "date": pa.array([day.date()]),
        "time": pa.array([day.time()]),
        "stamp": pa.array([day]),
        "nanos": pa.array([1], pa.timestamp("ns")),
        "duration": pa.array([datetime.timedelta(days=1)]),
        "decimal": pa.array([decimal.Decimal("1.50")]),
        "large": pa.array(["a"], pa.large_string()),
        "view": pa.array(["a"], pa.string_view()),
        "dictionary": pa.array(["a"]).dictionary_encode(),
        "list": pa.array([[1, None]]),
        "fixed": pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "null": pa.nulls(1),
        "nan": pa.array([math.nan]),
        "struct": pa.array([{"a": {"b": None}}]),
        "uuid": pa.array([b"0123456789abcdef"], pa.uuid()),
    }
    for name, column in columns.items():
        table = pa.table({"text": ["t"], name: column})
        path = tmp_path / f"{name}.parquet"
        if name == "f16" or "view" in name:
            import pyarrow.feather

            path = path.with_suffix(".feather")
            pyarrow.feather.write_feather(table, path)
        else:
            parquet.write_table(table, path)
        account = packed(path, tmp_path / f"out-{name}")
        assert not account.named, name
        [(_, fields)] = DatasetReader.open(str(tmp_path / f"out-{name}")).iter_samples()
        assert fields["txt"] == b"t"
        assert set(fields) - {"txt"}, name
    stamps = {"nanos": "1970-01-01T00:00:00.000000001", "stamp": "2026-01-02T03:04:05.678901Z"}
    for name, text in stamps.items():
        assert read(tmp_path / f"out-{name}").popitem()[1]["json"][name] == text


def test_each_dialect_of_csv(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "text": f'a "{n}", b;\tc\n', "empty": ""} for n in range(30)]
    wanted = {
        row["id"]: {"txt": row["text"].encode(), "json": {"id": row["id"], "empty": ""}} for row in rows
    }
    for number, (delimiter, ending, quoting, encoding, suffix) in enumerate(
        (delimiter, ending, quoting, encoding, suffix)
        for delimiter, suffix in ((",", "csv"), (";", "csv"), ("\t", "csv"), ("\t", "tsv"))
        for ending in ("\n", "\r\n")
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        for encoding in ("utf-8", "utf-8-sig")
    ):
        out = io.StringIO(newline="")
        writer = csv.DictWriter(
            out, list(rows[0]), delimiter=delimiter, lineterminator=ending, quoting=quoting
        )
        writer.writeheader()
        writer.writerows(rows)
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(out.getvalue().encode(encoding))
        assert not packed(path, tmp_path / f"out{number}").named
        assert read(tmp_path / f"out{number}") == wanted


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_json_as_python_writes_it(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "nan", "text": "a", "x": [math.nan, math.inf, -math.inf]},
        {"id": "surrogate", "text": "half \ud800", "y": "\udfff"},
        {"id": "x" * 5000, "text": "a long id"},
        {"id": 7, "text": "a number", "big": 2**70, "deep": [[[[]]]]},
        {"id": "ключ/✓", "text": "größe\u2028\u2029\x00"},
    ]
    for number, ascii_only in enumerate((True, False)):
        texts = [
            json.dumps(row, ensure_ascii=ascii_only) for row in rows if ascii_only or row["id"] != "surrogate"
        ]
        text = "\n".join(texts) + "\n" if suffix == "jsonl" else "[" + ",\n".join(texts) + "]"
        path = tmp_path / f"{number}.{suffix}"
        path.write_text(text.replace("Infinity", "1e400", 1), "utf-8")
        account = packed(path, tmp_path / f"out{number}")
        assert not account.named
        found = {fields["txt"]: fields for fields in read(tmp_path / f"out{number}").values()}
        assert len(found) == len(texts)
        assert found[b"a long id"]["json"] == {"id": "x" * 5000}
        assert repr(found[b"a"]["json"]["x"]) == "[nan, inf, -inf]"
        assert found["größe\u2028\u2029\x00".encode()]["json"] == {"id": "ключ/✓"}
        assert found[b"a number"]["json"] == {"id": 7, "big": 2**70, "deep": [[[[]]]]}
        if ascii_only:
            assert found["half \ufffd".encode()]["json"]["y"] == "\udfff"


def test_a_text_tree_keeps_its_bytes_and_names_what_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    files = {"a.txt": b"a\r\n\0", "b/ключ.md": "größe".encode(), "b/c.d.py": b"x = 1\n", "e.txt": b""}
    bad = {"utf16.txt": "größe".encode("utf-16"), "latin.txt": "größe".encode("latin-1")}
    for name, data in (files | bad).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    account = packed(folder, tmp_path / "out", folder)
    assert {where.partition(":")[0] for where in account.rejects} == set(bad)
    stored = sorted(fields["txt"] for fields in account.samples.values())
    assert stored == sorted(
        fields["txt"] for fields in digests({n: {"txt": d} for n, d in files.items()}).values()
    )
