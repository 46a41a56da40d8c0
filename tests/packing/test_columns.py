"""What `keep` names is in the index, for samples and for tokens: columns in = columns out."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.cli import app
from shardstream.errors import CorruptionError, OptionError, SourceError, StorageError
from shardstream.format.manifest import Manifest
from shardstream.packing.columns import column_value, columns_of
from shardstream.packing.destination import identity
from shardstream.packing.layout import Layout
from shardstream.packing.result import Result
from shardstream.packing.writer import SampleWriter
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Store
from tests.corpora import pack_rows

SMALL = {"frame_size": "256B", "shard_size": "1KiB"}
VALUES = {
    "flag": st.booleans(),
    "count": st.integers(-(2**63), 2**63 - 1),
    "score": st.floats(allow_nan=False, allow_infinity=False),
    "lang": st.sampled_from(["en", "de", "日本", ""]) | st.text(st.characters(codec="utf-8"), max_size=9),
}
ROW = st.fixed_dictionaries({"text": st.text(st.characters(codec="utf-8"), max_size=60)}, optional=VALUES)


def kept(url: Path) -> dict[str, dict[str, Any]]:
    """By key the values that the index has."""
    reader, found = DatasetReader.open(str(url)), {}
    for shard, info in enumerate(reader.manifest.shards):
        index, columns = reader.read_columns(shard)
        keys = index.keys_list(0, index.samples)
        found |= {key: {} for key in keys}
        for column in info.columns:
            stored = columns[column.name]
            values = stored.as_type(column.dtype, column.name).tolist()
            for key, value, missing in zip(keys, values, stored.missing.tolist(), strict=True):
                if not missing:
                    found[key][column.name] = value
    return found


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=30),
    more=st.lists(ROW, max_size=9),
    shuffle=st.none() | st.integers(0, 9),
    tokenizer=st.none() | st.just("bytes"),
)
def test_columns_in_are_columns_out(
    rows: list[dict[str, Any]], more: list[dict[str, Any]], shuffle: int | None, tokenizer: str | None
) -> None:
    named = [{"id": f"k{number}", **row} for number, row in enumerate([*rows, *more])]
    for begin in {0, len(rows)} if more else {0}:  # a name that no row of a pack has is an error
        named[begin] = {"flag": True, "count": 1, "score": 0.5, "lang": "x", **named[begin]}
    options = {"keep": list(VALUES), "shuffle": shuffle, "tokenizer": tokenizer, **SMALL}
    with tempfile.TemporaryDirectory() as folder:
        out = pack_rows(Path(folder), named[: len(rows)], **options)
        if more:
            source = Path(folder) / "more.jsonl"
            source.write_text("".join(json.dumps(row) + "\n" for row in named[len(rows) :]))
            manifest = ss.pack(source, out, append=True, workers=1, **options)
        else:
            manifest = Manifest.from_bytes((out / "manifest.json").read_bytes())
        assert manifest.version == 2
        assert ss.verify(str(out), deep=True).sound
        wanted = {row["id"]: {name: row[name] for name in VALUES if name in row} for row in named}
        assert kept(out) == wanted
        for column in manifest.columns:
            assert column.missing == sum(column.name not in row for row in named)


@pytest.mark.parametrize(("tokenizer", "shuffle"), [(None, None), ("bytes", 3)])
def test_any_number_of_workers_gives_the_same_bytes(
    tmp_path: Path, tokenizer: str | None, shuffle: int | None
) -> None:
    rows = [{"id": str(n), "text": "x" * 40, "n": n, "lang": "ende"[n % 2 * 2 :][:2]} for n in range(300)]
    one = pack_rows(tmp_path, rows, keep=["n", "lang"], tokenizer=tokenizer, shuffle=shuffle, **SMALL)
    ss.pack(
        tmp_path / "corpus.jsonl", tmp_path / "two", keep=["n", "lang"], workers=2, tokenizer=tokenizer,
        shuffle=shuffle, **SMALL,
    )  # fmt: skip
    files = sorted(path.name for path in one.iterdir())
    assert len(files) > 5
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((one / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    assert kept(one) == {row["id"]: {"n": row["n"], "lang": row["lang"]} for row in rows}


def test_without_columns_the_format_stays_version_1(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "x", "tags": ["no", "column"], "long": "y" * 257}]
    for options in ({}, {"keep": []}, {"keep": ["tags"]}, {"keep": ["long"]}):
        out = tmp_path / str(options)
        out.mkdir()
        text = (pack_rows(out, rows, **options) / "manifest.json").read_text()
        assert json.loads(text)["version"] == 1
        assert '"columns":' not in text
        assert '"index_head' not in text


def test_an_append_with_and_without_columns(tmp_path: Path) -> None:
    rows = [{"id": f"a{n}", "text": "x", "n": n} for n in range(3)]
    out = pack_rows(tmp_path, rows)
    assert json.loads((out / "manifest.json").read_text())["version"] == 1
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "b0", "text": "y", "n": 7, "ok": true}\n{"id": "b1", "text": "z", "n": 8.5}\n')
    manifest = ss.pack(more, out, append=True, keep=["n", "ok"], workers=1)
    assert manifest.version == 2
    more.write_text('{"id": "c0", "text": "y", "n": 9}\n')
    manifest = ss.pack(more, out, append=True, workers=1)
    assert [(c.name, c.dtype, c.missing) for c in manifest.columns] == [
        ("n", "float64", 4),
        ("ok", "bool", 5),
    ]
    ds = ss.StreamingDataset(out)
    assert [s["__key__"] for s in ds.subset(where=lambda c: c["n"] > 7.5)] == ["b1"]
    assert [s["__key__"] for s in ds.subset(where=lambda c: c["ok"] == True)] == ["b0"]  # noqa: E712
    assert [s["__key__"] for s in ds.subset(where=lambda c: c.column("n")[1])] == ["a0", "a1", "a2", "c0"]
    with pytest.raises(OptionError, match=r"where gave object .*c\[\.\.\.\] == True"):
        ds.subset(where=lambda c: c["ok"])


def test_a_predicate_over_columns_reads_no_data(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": "x" * 50, "lang": ["en", "de", None][n % 3], "n": n} for n in range(90)]
    out = pack_rows(tmp_path, rows, keep=["lang", "n"], **SMALL)
    ds = ss.StreamingDataset(out, shuffle=True)
    for shard in out.glob("*.tar.zst"):
        shard.rename(shard.with_suffix(".away"))
    small = ds.subset(where=lambda c: (c["lang"] == "en") & (c["n"] < 30) & (c.size["txt"] == 50))
    several = ds.subset(where=lambda c: np.isin(c["lang"], ["en", "de"]))
    none = ds.subset(where=lambda c: c["lang"] == None)  # noqa: E711
    assert (len(several), len(none)) == (60, 30)
    for shard in out.glob("*.away"):
        shard.rename(shard.with_suffix(".zst"))
    assert {s["__key__"] for s in small} == {str(n) for n in range(0, 30, 3)}


def test_whole_numbers_with_missing_values(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "text": "x", "n": 2**53 + 1, "m": 5}, {"id": "b", "text": "y"}]
    ds = ss.StreamingDataset(pack_rows(tmp_path, rows, keep=["n", "m"]))
    found: list[Any] = []
    ds.subset(where=lambda c: found.append(c["m"]) or c.number >= 0)
    assert found[0].dtype == np.float64
    assert found[0][0] == 5
    assert math.isnan(found[0][1])
    with pytest.raises(OptionError, match=r"use c\.column\('n'\)"):
        ds.subset(where=lambda c: c["n"] > 1)
    (one,) = ds.subset(where=lambda c: c.column("n")[0] == 2**53 + 1)
    assert one["__key__"] == "a"


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "x", "lang": "en", "tags": [1]}, {"id": "b", "text": "y", "lang": "de"}]
    ds = ss.StreamingDataset(pack_rows(tmp_path, rows, keep=["lang", "tags"]))
    with pytest.raises(OptionError, match=r"the column 'tags'; the dataset has \['lang'\]"):
        ds.subset(where=lambda c: c["tags"] == 1)
    with pytest.raises(OptionError, match="where= chooses none of the 2 samples of"):
        ds.subset(where=lambda c: c["lang"] == "fr")
    with pytest.raises(OptionError, match="numbers= chooses none of the 2"):
        ds.subset(numbers=[])
    with pytest.raises(SourceError, match="keep='tags': no document has a value"):
        ss.pack(
            tmp_path / "corpus.jsonl", tmp_path / "t", keep=["lang", "tags"], tokenizer="bytes", workers=1
        )
    assert not (tmp_path / "t" / "manifest.json").exists()


def test_a_damaged_column_is_found(tmp_path: Path) -> None:
    out = pack_rows(tmp_path, [{"id": str(n), "text": "x", "lang": f"l{n}"} for n in range(9)], keep=["lang"])
    index = out / "shard-000000.index"
    data = bytearray(index.read_bytes())
    data[-2] ^= 1
    index.write_bytes(data)
    ds = ss.StreamingDataset(out)
    assert len(list(ds)) == 9  # the damage is behind all that samples need
    with pytest.raises(CorruptionError, match="the index is damaged"):
        ds.subset(where=lambda c: c["lang"] == "l0")
    assert not ss.verify(str(out)).sound
    index.write_bytes(data[:-4])
    with pytest.raises((CorruptionError, StorageError)):
        ds.subset(where=lambda c: c["lang"] == "l0")


def test_a_manifest_whose_columns_do_not_fit_is_refused(tmp_path: Path) -> None:
    out = pack_rows(tmp_path, [{"id": "a", "text": "x", "n": 1}], keep=["n"])
    manifest = Manifest.from_bytes((out / "manifest.json").read_bytes())
    shard = manifest.shards[0]
    changes: list[tuple[dict[str, Any], str]] = [
        ({"columns": ()}, "columns are not those of the shards"),
        ({"version": 1}, "version 1 does not go with its columns"),
        ({"shards": (msgspec.structs.replace(shard, index_head=0),)}, "without the size of its index"),
        ({"shards": (msgspec.structs.replace(shard, index_head_checksum=""),)}, "without the size"),
        (
            {"shards": (msgspec.structs.replace(shard, columns=shard.columns * 2),)},
            "a column of values twice",
        ),
    ]
    for change, message in changes:
        wrong = msgspec.structs.replace(manifest, **change)
        wrong = msgspec.structs.replace(wrong, fingerprint=wrong.computed_fingerprint())
        with pytest.raises(CorruptionError, match=message):
            Manifest.from_bytes(wrong.to_bytes())
    newer = (out / "manifest.json").read_bytes().replace(b'"version": 2', b'"version": 3')
    with pytest.raises(CorruptionError, match="format version 3; this shardstream reads versions 1 and 2"):
        Manifest.from_bytes(newer)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (True, True), (np.True_, True), (7, 7), (np.int16(7), 7), (2**63 - 1, 2**63 - 1), (2**63, None),
        (0.5, 0.5), (np.float32(0.5), 0.5), ("é" * 128, "é" * 128), ("é" * 129, None), ("\ud800", None),
        (None, None), ([1], None), ({"a": 1}, None), (b"x", None), (np.zeros(2), None),
    ],
)  # fmt: skip
def test_which_values_are_columns(value: Any, wanted: Any) -> None:
    assert column_value(value) == wanted
    assert type(column_value(value)) is type(wanted)


@pytest.mark.parametrize("value", [2**63, "é" * 129, "\ud800", [1], None, np.float64(0.5)])
def test_a_source_that_gives_other_values_is_told(tmp_path: Path, value: Any) -> None:
    writer = SampleWriter(Store.open(str(tmp_path)), 0, Layout())
    with pytest.raises(SourceError, match=r"column 'x': .* is no bool, int of 64 bits, float, or string"):
        writer.add("a", {"txt": b"x"}, {"x": value})
    writer.add("a", {"txt": b"x"}, {"x": 1})  # nothing of it was left behind
    (shard,) = writer.close()
    assert (shard.samples, [column.dtype for column in shard.columns]) == (1, ["int64"])


def test_an_unfinished_pack_without_columns_is_not_continued_with_them() -> None:
    """Version 0.1 packed `keep` without columns: its shards may not stand beside ours."""
    with_keep, without = ({"options": {"keep": keep}, "tool": ""} for keep in (["a"], None))

    def of_version_01(record: dict[str, Any]) -> str:
        content = [{**record, "tool": "shardstream 0.1.0"}, False]
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()

    assert identity(with_keep, False) != of_version_01(with_keep)
    assert identity(without, False) == of_version_01(without)


def test_receipts_of_tasks_hold_columns(tmp_path: Path) -> None:
    """`--resume` takes finished tasks from their receipts, which are JSON."""
    out = pack_rows(tmp_path, [{"id": "a", "text": "x", "n": 1}, {"id": "b", "text": "x"}], keep=["n"])
    shards = Manifest.from_bytes((out / "manifest.json").read_bytes()).shards
    result = Result(0, list(shards), 2)
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result
    assert shards[0].columns[0].missing == 1


def test_nested_names_are_columns() -> None:
    row = {"meta": {"lang": "en", "deep": {"n": 1}}, "a.b": 2, "a": {"b": 3}, "no": None}
    names = ["meta.lang", "meta.deep.n", "a.b", "meta.none", "no.x", "meta"]
    assert columns_of(row, names) == {"meta.lang": "en", "meta.deep.n": 1, "a.b": 2}
    assert columns_of(row, None) == {}


def test_tools_know_of_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": str(n), "text": "abc", "lang": "en", **({"n": n} if n else {})} for n in range(3)]
    out = pack_rows(tmp_path, rows, keep=["lang", "n"], tokenizer="bytes", eos=0)

    def run(*arguments: str) -> str:
        assert app.run(list(arguments)) == 0
        return capsys.readouterr().out

    told = run("pack", str(tmp_path / "corpus.jsonl"), str(tmp_path / "two"), "--keep", "lang", "--keep", "n")
    assert "columns: lang str, n int64 (1 missing)" in told
    assert json.loads(run("info", str(out), "--json"))["columns"] == [
        {"name": "lang", "dtype": "str", "missing": 0},
        {"name": "n", "dtype": "int64", "missing": 1},
    ]
    assert "n     int64, 1 missing" in run("info", str(out))
    run("show", str(out))
    run("export", str(out), str(tmp_path / "back"), "--format", "jsonl")
    lines = [json.loads(line) for line in (tmp_path / "back" / "shard-000000.jsonl").read_text().splitlines()]
    tokens = [97, 98, 99, 0]
    assert lines == [
        {"__key__": row["id"], "tokens": tokens, **{k: v for k, v in row.items() if k in ("lang", "n")}}
        for row in rows
    ]


def test_samples_need_no_columns_to_be_read(tmp_path: Path) -> None:
    """The head of the index is all that is fetched, and that a cache holds, until columns are asked for."""
    rows = [{"id": str(n), "text": "x" * 50, "lang": "en"[: n % 3], "n": n} for n in range(40)]
    out = pack_rows(tmp_path, rows, keep=["lang", "n"], **SMALL)
    cache = ss.Cache(tmp_path / "cache", always=True)
    ds = ss.StreamingDataset(out, cache=cache)
    assert len(list(ds)) == 40
    ss.warm(ds)
    names = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert "index" in names
    assert "columns" not in names
    small = ds.subset(where=lambda c: c["n"] < 5)
    assert len(list(small)) == 5
    ss.warm(small)
    offline = ss.Cache(tmp_path / "cache", always=True, offline=True)
    again = ss.StreamingDataset(out, cache=offline).subset(where=lambda c: c["n"] < 5)
    assert [s["__key__"] for s in again] == [str(n) for n in range(5)]
