"""Parquet, Arrow, CSV and JSON: what becomes which field, what is refused, and how files become tasks."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

import shardstream as ss
from shardstream.errors import OptionError, SourceError
from shardstream.packing.sources import Reject, SourceOptions, make_source
from shardstream.storage.inputs import expand
from shardstream.testing.sources import read_source

JPG, PNG = b"\xff\xd8\xff\xe0 jpg", b"\x89PNG\r\n\x1a\n png"


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def packed(source: Path, dest: Path, **options: Any) -> list[dict[str, Any]]:
    """The samples as they are stored."""
    ss.pack(source, dest, workers=1, **options)
    ds = ss.StreamingDataset(str(dest), shuffle=False, decode=False)
    return [
        {name: value if isinstance(value, str) else bytes(value) for name, value in sample.items()}
        for sample in ds
    ]


class TestColumns:
    def test_bytes_are_fields_named_by_their_content(self, tmp_path: Path) -> None:
        rows = [
            {"id": "a", "image": {"bytes": JPG, "path": None}},
            {"id": "b", "image": {"bytes": PNG, "path": "x"}},
        ]
        found = packed(parquet(tmp_path / "a.parquet", rows), tmp_path / "out")
        assert found == [
            {"__key__": "a", "jpg": JPG, "json": b'{"id":"a"}'},
            {"__key__": "b", "png": PNG, "json": b'{"id":"b"}'},
        ]

    def test_several_columns_of_bytes_keep_their_names(self, tmp_path: Path) -> None:
        rows = [{"image": JPG, "mask": PNG, "raw": b"\0\1", "text": "t"}]
        found = packed(parquet(tmp_path / "a.parquet", rows), tmp_path / "out", keep=[])
        assert found == [
            {"__key__": "a-000000000000", "txt": b"t", "image.jpg": JPG, "mask.png": PNG, "raw.raw": b"\0\1"}
        ]

    def test_column_says_what_becomes_which_field(self, tmp_path: Path) -> None:
        rows = [{"image": {"bytes": JPG, "path": "p"}, "caption": "c", "label": 7, "n": 1.5}]
        path = parquet(tmp_path / "a.parquet", rows)
        column = {"*": "image.bytes", "txt": "caption", "cls": "label"}
        (found,) = packed(path, tmp_path / "out", column=column, key="label", keep=["n", "image.path"])
        assert found == {
            "__key__": "7", "jpg": JPG, "txt": b"c", "cls": b"7", "json": b'{"n":1.5,"image.path":"p"}'
        }  # fmt: skip

    def test_tokens_that_are_there_already(self, tmp_path: Path) -> None:
        rows = [{"id": "a", "input_ids": [1, 2, 3]}, {"id": "b", "input_ids": [70_000]}]
        path = parquet(tmp_path / "a.parquet", rows)
        manifest = ss.pack(path, tmp_path / "out", column={"tokens": "input_ids"}, eos=9)
        assert (manifest.kind, manifest.tokens, manifest.fields[0].dtype) == ("tokens", 6, "uint32")
        blocks = list(ss.TokenDataset(str(tmp_path / "out"), 5, shuffle=False))
        assert [block["tokens"].tolist() for block in blocks] == [[1, 2, 3, 9, 70_000, 9]]
        with pytest.raises(SourceError, match=r"row 1: no list of token ids that fit uint16"):
            ss.pack(path, tmp_path / "small", column={"tokens": "input_ids"}, dtype="uint16")

    @pytest.mark.parametrize("format", ["parquet", "jsonl"])
    def test_tokens_alone_say_how_they_are_packed(self, tmp_path: Path, format: str) -> None:
        rows = [{"id": "a", "input_ids": [1, 2]}]
        path = tmp_path / f"a.{format}"
        if format == "parquet":
            parquet(path, rows)
        else:
            path.write_text(json.dumps(rows[0]))
        with pytest.raises(SourceError, match="for token ids: --column tokens=input_ids"):
            ss.pack(path, tmp_path / "out", workers=1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"column": {"jpg": "nope.bytes"}}, "there is no column 'nope.bytes'; there are 'id', 'text'"),
            ({"key": "zz"}, "there is no column 'zz'"),
            ({"text_key": "zz"}, "there is no column 'zz' of text"),
        ],
    )
    def test_an_unknown_column_is_named(self, tmp_path: Path, options: Any, message: str) -> None:
        path = parquet(tmp_path / "a.parquet", [{"id": "a", "text": "t"}])
        with pytest.raises(SourceError, match=re.escape(message)):
            ss.pack(path, tmp_path / "out", workers=1, **options)
        assert not (tmp_path / "out" / "manifest.json").exists()

    def test_a_file_may_lack_a_column_that_others_have(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        parquet(tmp_path / "in" / "a.parquet", [{"id": "a", "text": "t", "lang": "de"}])
        parquet(tmp_path / "in" / "b.parquet", [{"id": f"b{n}", "text": "t"} for n in range(50)])
        ss.pack(tmp_path / "in", tmp_path / "out", workers=1, keep=["lang"], max_rejects=0)
        ds = ss.StreamingDataset(str(tmp_path / "out"), shuffle=False)
        assert [sample.get("json") for sample in ds] == [{"lang": "de"}] + [None] * 50
        with pytest.raises(OptionError, match="no row has 'zz'; nothing was committed"):
            ss.pack(tmp_path / "in", tmp_path / "none", workers=1, keep=["lang", "zz"], on_error="skip")
        assert not (tmp_path / "none" / "manifest.json").exists()

    def test_a_value_that_is_missing_is_a_reject_that_names_the_row(self, tmp_path: Path) -> None:
        rows = [{"id": "a", "text": "t"}, {"id": "b", "text": None}]
        source = make_source("parquet")
        _, bad = read_source(source, expand([str(parquet(tmp_path / "a.parquet", rows))]), 1 << 20)
        assert isinstance(bad, Reject)
        assert bad.where.endswith("a.parquet, row 1")
        assert "'txt' has no value" in bad.reason


class TestTasks:
    def test_small_files_share_a_shard_and_large_ones_are_cut(self, tmp_path: Path) -> None:
        rows = [{"id": str(number), "text": os.urandom(500).hex()} for number in range(500)]
        for number in range(30):
            parquet(tmp_path / f"{number:02d}.parquet", rows[number : number + 5])
        parquet(tmp_path / "large.parquet", rows, row_group_size=50)
        manifest = ss.pack(tmp_path, tmp_path / "out", format="parquet", shard_size="64KiB", workers=1)
        assert manifest.samples == 650
        assert 10 + 3 <= len(manifest.shards) <= 10 + 4

    def test_small_files_of_lines_share_a_shard(self, tmp_path: Path) -> None:
        for number in range(300):
            (tmp_path / f"{number:03d}.jsonl").write_text('{"id":1,"text":"a"}\n{"id":2,"text":"b"}\n')
        manifest = ss.pack(tmp_path, tmp_path / "out", format="jsonl", workers=1)
        assert (manifest.samples, len(manifest.shards)) == (600, 1)

    def test_any_number_of_workers_gives_the_same_bytes(self, tmp_path: Path) -> None:
        rows = [{"id": str(number), "text": f"text {number} " * 50} for number in range(900)]
        for name, part in (("a", rows[:300]), ("b", rows[300:310]), ("c", rows[310:])):
            parquet(tmp_path / f"{name}.parquet", part, row_group_size=40)
        files = []
        for workers in (1, 3):
            dest = tmp_path / f"out{workers}"
            ss.pack(
                [tmp_path / f"{name}.parquet" for name in "abc"], dest, workers=workers, shard_size="100KiB"
            )
            files.append({path.name: path.read_bytes() for path in dest.iterdir()})
        assert files[0] == files[1]
        assert len(files[0]) > 8


class TestDamage:
    @pytest.mark.parametrize("format", ["parquet", "arrow"])
    def test_a_file_that_is_cut_off_or_another_is_named(self, tmp_path: Path, format: str) -> None:
        table = pa.table({"id": ["a", "b"], "text": ["x" * 500, "y"]})
        path = tmp_path / f"in.{format}"
        if format == "parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            with pyarrow.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        whole = path.read_bytes()
        for data in (whole[:-9], whole[: len(whole) // 2], b"", b"text\n" * 100):
            path.write_bytes(data)
            with pytest.raises(SourceError, match=rf"in\.{format}"):
                ss.pack(path, tmp_path / "out", format=format, workers=1)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,,b\n1,2,3\n", "a column has no name"),
            ("a,b,a\n1,2,3\n", "two columns are called 'a'"),
            ("text,n\nx\n", "byte 7: 1 values for 2 columns"),
            ('text,n\n"x\n', "byte 7: not CSV"),
        ],
    )
    def test_lines_that_are_no_csv_are_named(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "in.csv").write_text(text)
        with pytest.raises(SourceError, match=rf"in\.csv.*{re.escape(message)}"):
            ss.pack(tmp_path / "in.csv", tmp_path / "out", format="csv", workers=1)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[{"text":"a"},', "ends too early"),
            ('[{"text":"a"}]]', "closes nothing at byte 14"),
            ('[{"text":"a"},5]', "not a JSON object"),
            ('{"text":"a"} nonsense', "not a JSON object"),
        ],
    )
    def test_what_is_no_json_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "in.json").write_text(text)
        with pytest.raises(SourceError, match=rf"in\.json.*{re.escape(message)}"):
            ss.pack(tmp_path / "in.json", tmp_path / "out", format="json", workers=1)


def test_values_longer_than_a_chunk(tmp_path: Path) -> None:
    long = 'say "[{\\' * 400_000
    (tmp_path / "in.json").write_text(json.dumps([{"id": 1, "text": long}, {"id": 2, "text": "b"}]))
    found = packed(tmp_path / "in.json", tmp_path / "out", format="json", keep=[])
    assert found == [{"__key__": "1", "txt": long.encode()}, {"__key__": "2", "txt": b"b"}]


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    # As the package datasets 5.0 writes them: a stream of Arrow, and a state that lists the files.
    for split, count in (("train", 2), ("test", 1)):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        names = [f"data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]
        for number, name in enumerate(names):
            table = pa.table({"text": [f"{split} {number}"]})
            with pyarrow.ipc.new_stream(folder / name, table.schema) as writer:
                writer.write_table(table)
        (folder / "dataset_info.json").write_text("{}")
        state = {"_data_files": [{"filename": name} for name in names], "_split": None}
        (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = packed(tmp_path / "saved", tmp_path / "out")  # the folder shows its format
    assert [sample["txt"] for sample in found] == [b"test 0", b"train 0", b"train 1"]
    (tmp_path / "saved" / "train" / names[0]).unlink(missing_ok=True)
    state["_indices_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "saved" / "test" / "state.json").write_text(json.dumps(state))
    with pytest.raises(SourceError, match="flatten_indices"):
        ss.pack(tmp_path / "saved", tmp_path / "again", format="hf", workers=1)


@pytest.mark.parametrize(
    "line",
    ['{"id":1,"text":"x","v":NaN}', '{"id":1,"text":"x","v":-Infinity}', '{"id":1,"text":"x","v":"\\ud800"}'],
)
def test_objects_as_python_writes_them(tmp_path: Path, line: str) -> None:
    (tmp_path / "in.jsonl").write_text(line + "\n")
    ss.pack(tmp_path / "in.jsonl", tmp_path / "out", workers=1)
    (sample,) = ss.StreamingDataset(str(tmp_path / "out"), shuffle=False)
    assert json.dumps(sample["json"]["v"]) == json.dumps(json.loads(line)["v"])


def test_half_of_a_surrogate_pair_in_a_text_is_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text":"a \\udc00 b \\ud83d\\ude00"}\n')
    manifest = ss.pack(tmp_path / "in.jsonl", tmp_path / "out", workers=1)
    (sample,) = ss.StreamingDataset(str(tmp_path / "out"), shuffle=False)
    assert sample["txt"] == "a \ufffd b \U0001f600"
    assert manifest.provenance["counts"] == {"lone_surrogates": 1}


@pytest.mark.parametrize("keep", [None, ["n"]])
def test_a_long_id_is_hashed_and_kept(tmp_path: Path, keep: Any) -> None:
    ids = ["k" * 2000, "k" * 2001]
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": one, "text": "t", "n": 1}) + "\n" for one in ids)
    )
    ss.pack(tmp_path / "in.jsonl", tmp_path / "out", workers=1, keep=keep)
    found = list(ss.StreamingDataset(str(tmp_path / "out"), shuffle=False))
    assert [sample["json"]["id"] for sample in found] == ids
    assert all(re.fullmatch(r"xxh3-[0-9a-f]{32}", sample["__key__"]) for sample in found)


def test_conversations_are_kept_as_objects(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    ss.pack(tmp_path / "in.jsonl", tmp_path / "out", workers=1)
    (sample,) = ss.StreamingDataset(str(tmp_path / "out"), shuffle=False)
    assert sample == {"__key__": "a", "json": {"id": "a", "messages": messages}}


def test_options_of_tables_are_for_tables(tmp_path: Path) -> None:
    with pytest.raises(ss.OptionError, match="column is for --format"):
        make_source("text", SourceOptions(column=(("txt", "a"),)))


class TestContent:
    """What a file is shows in its content, whatever its name says."""

    @pytest.mark.parametrize(
        "text",
        ['[{"id":"a","text":"x"}]', '\ufeff [\n{"id":"a",\n"text":"x"}\n]', '{\n"id":"a",\n"text":"x"\n}\n'],
    )
    def test_an_array_in_a_json_file_is_recognised(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "in.json").write_text(text, encoding="utf-8")
        assert ss.pack(tmp_path / "in.json", tmp_path / "out", dry_run=True).format == "json"
        assert packed(tmp_path / "in.json", tmp_path / "out", keep=[]) == [{"__key__": "a", "txt": b"x"}]

    @pytest.mark.parametrize("text", ['{"text":"x"}', '{"text":"x"}\n{"text":"y"}\n', ""])
    def test_lines_in_a_json_file_are_lines(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "in.json").write_text(text)
        (tmp_path / "next.json").write_text('{"text":"' + "z" * 100_000 + '"}')
        assert ss.pack(tmp_path, tmp_path / "out", dry_run=True).format == "jsonl"

    def test_an_array_among_lines_says_how_to_read_it(self, tmp_path: Path) -> None:
        (tmp_path / "in.jsonl").write_text('[{"text":"x"}]')
        with pytest.raises(SourceError, match="for a file that is an array: --format json"):
            ss.pack(tmp_path / "in.jsonl", tmp_path / "out", workers=1)

    @pytest.mark.parametrize("format", ["jsonl", "json", "csv", "parquet", "arrow"])
    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "a file of png"),
            (b"PK\x03\x04" + b"\xff" * 99, "a zip file"),
            (b"SQLite format 3\0" + b"\xff" * 99, "an SQLite database"),
            ("text,n\n".encode("utf-16"), "text in UTF-16"),
        ],
    )
    def test_a_file_of_another_type_is_named(
        self, tmp_path: Path, format: str, data: bytes, what: str
    ) -> None:
        (tmp_path / "in").write_bytes(data)
        with pytest.raises(SourceError, match=rf"/in: this is {what}, not "):
            ss.pack(tmp_path / "in", tmp_path / "out", format=format, workers=1)  # type: ignore[call-overload]

    @pytest.mark.parametrize("format", ["parquet", "arrow"])
    def test_a_compressed_file_is_named(self, tmp_path: Path, format: str) -> None:
        (tmp_path / "in").write_bytes(gzip.compress(b"PAR1 or so" * 9))
        with pytest.raises(SourceError, match="this is a gzip file, not a"):
            ss.pack(tmp_path / "in", tmp_path / "out", format=format, workers=1)  # type: ignore[call-overload]


class TestFolders:
    def test_a_folder_of_a_hub(self, tmp_path: Path) -> None:
        for name in ("README.md", "dataset_infos.json", "LICENSE", "data/notes.txt"):
            (tmp_path / "in" / "data").mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_text("words")
        for split in ("test", "train"):
            parquet(tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet", [{"id": 1, "text": split}])
        found = packed(tmp_path / "in", tmp_path / "out", keep=[])
        assert found == [
            {"__key__": f"data/{split}-00000-of-00001/1", "txt": split.encode()}
            for split in ("test", "train")
        ]

    def test_a_file_that_is_named_is_read_whatever_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("words")
        with pytest.raises(SourceError, match=r"a\.json"):
            ss.pack(tmp_path / "a.json", tmp_path / "out", format="parquet", workers=1)

    def test_footers_of_small_files_are_not_read_for_the_plan(self, tmp_path: Path) -> None:
        path = parquet(
            tmp_path / "a.parquet", [{"id": str(n), "text": "x"} for n in range(10)], row_group_size=3
        )
        files = expand([str(path)])
        source = make_source("parquet")
        path.write_bytes(bytes(path.stat().st_size))
        assert len(source.plan(files, 1 << 30)) == 1
        with pytest.raises(SourceError, match=r"a\.parquet"):
            source.plan(files, 1000)

    def test_an_empty_table_is_no_samples(self, tmp_path: Path) -> None:
        table = pa.table({"text": pa.array([], pa.string())})
        pyarrow.parquet.write_table(table, tmp_path / "none.parquet")
        for target in (1, 1 << 30):
            assert read_source(make_source("parquet"), expand([str(tmp_path / "none.parquet")]), target) == []


class TestArrowParts:
    @staticmethod
    def stream(path: Path, new: Any, batches: int = 10) -> Path:
        table = pa.table({"id": [str(n) for n in range(batches * 10)], "text": ["x" * 100] * (batches * 10)})
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=10)
        return path

    @pytest.mark.parametrize("new", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
    def test_a_large_file_is_cut_between_batches(self, tmp_path: Path, new: Any) -> None:
        files = expand([str(self.stream(tmp_path / "a.arrow", new))])
        assert len(make_source("arrow").plan(files, files[0].size // 5)) >= 5

    @pytest.mark.parametrize("new", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
    def test_a_file_that_is_cut_off_is_not_cut_in_parts(self, tmp_path: Path, new: Any) -> None:
        path = self.stream(tmp_path / "a.arrow", new)
        whole, source = path.read_bytes(), make_source("arrow")
        for size in range(len(whole) - 9, 100, -97):
            path.write_bytes(whole[:size])
            files = expand([str(path)])
            tasks = source.plan(files, 2000)
            found = 0
            with contextlib.suppress(SourceError):
                found = sum(1 for task in tasks for _ in source.read(task))
            # A stream may end behind any message.
            assert found == 0 or (new is pyarrow.ipc.new_stream and found % 10 == 0)

    def test_dictionaries_that_change_keep_a_stream_whole(self, tmp_path: Path) -> None:
        schema = pa.schema({"text": pa.dictionary(pa.int8(), pa.string())})
        with pyarrow.ipc.new_stream(tmp_path / "a.arrow", schema) as writer:
            for word in ("one", "two", "three"):
                values = pa.array([word] * 20).dictionary_encode()
                writer.write_batch(pa.record_batch([values.cast(schema.field(0).type)], schema=schema))
        files = expand([str(tmp_path / "a.arrow")])
        source = make_source("arrow")
        assert len(source.plan(files, 1)) == 1
        found = [item.fields["txt"] for item in read_source(source, files, 1) if not isinstance(item, Reject)]
        assert found == [b"one"] * 20 + [b"two"] * 20 + [b"three"] * 20


def test_numbers_that_json_does_not_have_are_as_python_writes_them(tmp_path: Path) -> None:
    rows = [{"text": "a", "x": float("nan"), "l": [1.0, float("-inf")], "n": None, "d": date(2020, 1, 2)}]
    (found,) = packed(parquet(tmp_path / "a.parquet", rows), tmp_path / "out")
    assert found["json"] == b'{"x":NaN,"l":[1.0,-Infinity],"n":null,"d":"2020-01-02"}'


def test_with_columns_lines_of_python_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id":1,"c":"a \\udc00","x":NaN,"s":"\\ud800"}\n')
    (found,) = packed(tmp_path / "in.jsonl", tmp_path / "out", column={"txt": "c"})
    assert found == {
        "__key__": "1", "txt": "a \ufffd".encode(), "json": b'{"id":1,"x":NaN,"s":"\\ud800"}'
    }  # fmt: skip


def test_a_csv_with_quotes_but_no_quoted_line_break_is_cut(tmp_path: Path) -> None:
    lines = [f'r{n},"a ""b"", {n}"\n' for n in range(100)]
    (tmp_path / "in.csv").write_text("id,text\n" + "".join(lines))
    source, files = make_source("csv", SourceOptions(keep=())), expand([str(tmp_path / "in.csv")])
    assert len(source.plan(files, 200)) > 5
    assert read_source(source, files, 200) == read_source(source, files, 1 << 20)
    (tmp_path / "in.csv").write_text("id,text\n" + "".join(lines) + 'x,"a\nb"\n')
    assert len(source.plan(expand([str(tmp_path / "in.csv")]), 200)) == 1


@pytest.mark.parametrize(
    ("format", "text"),
    [("jsonl", '{"id":"a","text":"x"}\n'), ("csv", "id,text\na,x\n"), ("json", '[{"id":"a","text":"x"}]')],
)
def test_standard_input_is_a_source(tmp_path: Path, format: str, text: str) -> None:
    command = [
        sys.executable,
        "-m",
        "shardstream",
        "pack",
        "-",
        str(tmp_path / "out"),
        "--format",
        format,
        "--json",
    ]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    ds = ss.StreamingDataset(str(tmp_path / "out"), shuffle=False)
    assert [(sample["__key__"], sample["txt"]) for sample in ds] == [("a", "x")]


def test_standard_input_needs_a_format(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shardstream", "pack", "-", str(tmp_path / "out")]
    done = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert done.returncode == 2
    assert b"pass --format" in done.stderr
