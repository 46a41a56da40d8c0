"""JSON Lines: which lines become samples, under which keys, and what is said of the others."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import SourceError
from shardstream.packing.sources import Reject, Sample, Source, Task, make_source
from shardstream.packing.sources.jsonl import JsonlSource
from shardstream.read.reader import DatasetReader
from shardstream.storage.inputs import expand

ZSTD = zstandard.ZstdCompressor(write_checksum=True)
PACKED = {".jsonl": lambda data: data, ".jsonl.gz": gzip.compress, ".jsonl.zst": ZSTD.compress}
Found = list[tuple[str, dict[str, bytes]]]


@pytest.fixture(params=list(PACKED))
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def put(folder: Path, data: bytes, suffix: str = ".jsonl") -> Path:
    path = folder / f"in{suffix}"
    path.write_bytes(PACKED[suffix](data))
    return path


def pack(path: Path, **options: Any) -> Found:
    with tempfile.TemporaryDirectory(dir=path.parent) as dest:
        ss.pack(path, f"{dest}/out", workers=1, **options)
        assert ss.verify(f"{dest}/out", deep=True).sound
        return list(DatasetReader.open(f"{dest}/out").iter_samples())


def rejects(path: Path, **options: Any) -> list[str]:
    """Where the rejects of a pack are, relative to the file, "3" for line 3."""
    dest = path.parent / "rejecting"
    ss.pack(path, dest, workers=1, on_error="skip", **options)
    rows = [json.loads(line) for line in (dest / "rejects.jsonl").read_text("utf-8").splitlines()]
    assert all(row["reason"] for row in rows)
    return [row["where"].removeprefix(f"{path}:") for row in rows]


def read(source: Source, path: Path, target: int) -> list[Sample | Reject]:
    return [item for task in source.plan(expand([str(path)]), target) for item in source.read(task)]


DOCUMENTS = [b'{"id":"a","text":"x"}', '{"text":"é✓ 数据"}'.encode(), b'{"text":"","n":[1,{"b":null}]}']


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_in_lf_or_crlf_and_the_last_may_have_no_end(tmp_path, suffix, end, last):
    data = end.join(DOCUMENTS) + end * last
    found = pack(put(tmp_path, data, suffix))
    assert [fields["txt"].decode() for _, fields in found] == ["x", "é✓ 数据", ""]
    assert found[0][0] == "a"
    assert json.loads(found[2][1]["json"]) == {"n": [1, {"b": None}]}
    assert "json" not in found[1][1]


def test_blank_lines_are_no_samples_and_no_rejects(tmp_path, suffix):
    data = b"\n\r\n  \t\n" + b"\n\n".join(DOCUMENTS) + b"\n \n\n"
    assert len(pack(put(tmp_path, data, suffix))) == 3


def test_a_byte_order_mark_is_left_out(tmp_path, suffix):
    path = put(tmp_path, b"\xef\xbb\xbf" + b"\n".join(DOCUMENTS), suffix)
    assert [fields["txt"].decode() for _, fields in pack(path)] == ["x", "é✓ 数据", ""]
    assert rejects(put(tmp_path, DOCUMENTS[0] + b"\n\xef\xbb\xbf" + DOCUMENTS[1], suffix)) == ["2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id":"b"}', "no key 'text'"),
        (b'{"text":3}', "the value of 'text' is not a string"),
        (b'{"text":null}', "the value of 'text' is not a string"),
        (b'{"text":["x"]}', "the value of 'text' is not a string"),
        (b'["text"]', "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b"text", "not a JSON object"),
        (b'{"text":"x"', "not a JSON object"),
        (b'{"text":"x"} {"text":"y"}', "not a JSON object"),
        (b'{"text":"\xff\xfe"}', "not a JSON object in UTF-8"),
        (b'{"text":"x","\xc3(":1}', "not a JSON object in UTF-8"),
        (b'{"text":"x","n":' + b"9" * 5000 + b"}", "not a JSON object"),
        (b'{"text":"x","n":' + b"[" * 5000 + b"]" * 5000 + b"}", "not a JSON object"),
        ('{"text":"x"}'.encode("utf-16"), "not a JSON object in UTF-8"),
        (b'{"id":"a","text":"again"}', "the key 'a' occurs twice"),
    ],
)
def test_a_line_that_is_no_document_is_rejected_by_file_and_line(tmp_path, suffix, line, reason):
    path = put(tmp_path, b"\n".join([DOCUMENTS[0], b"", line, DOCUMENTS[1], b""]), suffix)
    with pytest.raises(SourceError) as caught:
        ss.pack(path, tmp_path / "out", workers=1)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    (where,) = rejects(path)
    parsed = "occurs twice" not in reason
    assert where == "3" or (not parsed and suffix == ".jsonl" and where == f"{path}, byte 23")
    assert [fields["txt"].decode() for _, fields in pack(path, on_error="skip")] == ["x", "é✓ 数据"]


def test_lines_are_counted_over_all_slices(tmp_path):
    data = b"".join(DOCUMENTS[number % 3] + b"\n" if number % 5 else b"bad\n" for number in range(3, 60))
    path = put(tmp_path, data.replace(b'"id":"a",', b""))
    wanted = [str(number - 2) for number in range(3, 60) if number % 5 == 0]
    assert rejects(path, shard_size=97, frame_size=16) == wanted


def test_keys(tmp_path, suffix):
    rows: list[dict[str, object]] = [
        {"__key__": "one", "key": "x", "id": "y"}, {"key": "two", "id": "y"}, {"id": "three"}, {"id": 4},
        {"id": 10**25}, {"id": "", "key": None}, {"id": True}, {"id": 1.5}, {"id": "a.b/c.d"}, {"id": "/"},
        {"id": "../x"}, {"id": "%41"}, {"id": "ключ\\\0"}, {},
    ]  # fmt: skip
    lines = [json.dumps({"text": "", **row}).encode() + b"\n" for row in rows]
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    places = starts if suffix == ".jsonl" else range(1, len(lines) + 1)
    own = {number: f"in-{place:012d}" for number, place in enumerate(places)}
    assert [key for key, _ in pack(put(tmp_path, b"".join(lines), suffix))] == [
        "one", "two", "three", "4", str(10**25), own[5], own[6], own[7], "a.b/c%2Ed", "%/%",
        "%2E%2E/x", "%2541", "ключ%5C%00", own[13],
    ]  # fmt: skip


def test_the_key_column_stays_but_not_the_one_of_an_export(tmp_path):
    path = put(
        tmp_path, b'{"id":"a","text":"x"}\n{"__key__":"b","text":"y","n":1}\n{"__key__":"c","text":""}\n'
    )
    assert [fields.get("json") for _, fields in pack(path)] == [b'{"id":"a"}', b'{"n":1}', None]


def test_of_a_name_given_twice_the_last_counts(tmp_path):
    assert pack(put(tmp_path, b'{"id":"a","text":"x","text":"y","n":1,"n":2}')) == [
        ("a", {"txt": b"y", "json": b'{"id":"a","n":2}'})
    ]


def test_keep_and_text_key_choose_the_columns(tmp_path):
    path = put(tmp_path, b'{"body":"x","b":2,"a":1,"c":3}\n{"body":"y","c":3}\n')
    found = pack(path, text_key="body", keep=["a", "b"])
    assert [fields for _, fields in found] == [{"txt": b"x", "json": b'{"a":1,"b":2}'}, {"txt": b"y"}]
    with pytest.raises(SourceError, match=r"in\.jsonl:1: no key 'text'; name the one .* --text-key"):
        pack(path)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**200), 2**200) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(scalars, lambda some: st.lists(some) | st.dictionaries(texts, some), max_leaves=8)
rows = st.dictionaries(texts.filter(lambda name: name not in ("text", "__key__")), values, max_size=4)


@given(texts, rows, st.booleans())
def test_every_json_value_comes_back(text, row, ascii_only):
    with tempfile.TemporaryDirectory() as folder:
        line = json.dumps({**row, "text": text}, ensure_ascii=ascii_only)
        (item,) = read(make_source("jsonl"), put(Path(folder), line.encode()), 1 << 20)
    assert isinstance(item, Sample)
    assert item.fields["txt"].decode() == text
    assert json.loads(item.fields.get("json", b"{}")) == row


lines = st.lists(
    st.sampled_from([b"", b"\r", b" ", b"bad", b"{}", *DOCUMENTS, DOCUMENTS[1] + b"\r"]), max_size=8
)


@settings(max_examples=40)
@given(lines, st.booleans(), st.booleans())
def test_any_slicing_gives_every_line_once(lines, ended, marked):
    data = b"\xef\xbb\xbf" * marked + b"\n".join(lines) + b"\n" * ended
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), data)
        whole = read(make_source("jsonl"), path, 1 << 20)
        assert sum(isinstance(item, Sample) for item in whole) == sum(b"text" in line for line in lines)
        assert sum(isinstance(item, Reject) for item in whole) == sum(
            line in (b"bad", b"{}") for line in lines
        )
        for target in range(1, len(data) + 1):
            assert read(make_source("jsonl"), path, target) == whole


@pytest.mark.parametrize(
    "size", [(1 << 20) + delta for delta in (-2, -1, 0, 1, 2)] + [(1 << 21) + 1, 5 << 20]
)
def test_lines_longer_than_the_buffer(tmp_path, suffix, size):
    empty = len(b'{"text":""}\n')
    letters = [b"a" * (size - empty), b"b", b"c" * (size - 2 * empty - 1), b"d"]
    data = b"".join(b'{"text":"%s"}\n' % text for text in letters)
    path = put(tmp_path, data, suffix)
    for target in (1 << 30, size, size - 1, size // 3):
        found = read(make_source("jsonl"), path, target)
        assert [item.fields["txt"] for item in found if isinstance(item, Sample)] == letters


@pytest.mark.parametrize(
    "data",
    [
        b"\n" * (1 << 17),
        b"{}\n" * (1 << 17),
        b'{"text":"%s"}\n' % (b"a" * (5 << 19)) + b"{%s}\n" % (b" " * 61) * (1 << 15),
    ],
    ids=["blank", "short", "one is long"],
)
def test_few_lines_are_in_memory(tmp_path, suffix, data):
    """However short they are: each takes many times its bytes. Nor does the buffer of a long one stay."""
    path, source = put(tmp_path, data, suffix), make_source("jsonl")
    assert isinstance(source, JsonlSource)
    ((span,),) = (task.files for task in source.tasks(expand([str(path)]), 1 << 40))
    lines, most, views = 0, 0, 0
    for _, batches, _ in source._lines(Task(0, (span,))):
        for batch in batches:
            lines, most = lines + len(batch), max(most, len(batch))
            views = len(batch[-1][1].obj) if isinstance(batch[-1][1], memoryview) else 0
            assert sum(len(line) for _, line in batch[1:]) <= 1 << 20
    assert lines == data.count(b"\n")
    assert most == 4096
    assert views <= 1 << 20


def test_the_keys_of_files_of_one_name_differ(tmp_path):
    names = ["a/in.jsonl", "b/in.jsonl", "b/in.jsonl.gz", "b/in~2.jsonl", "in.ndjson"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((gzip.compress if name.endswith("gz") else bytes)(b'{"text":"x"}'))
    ss.pack([tmp_path / name for name in names], tmp_path / "out", workers=1)
    keys = [key for key, _ in DatasetReader.open(str(tmp_path / "out")).iter_samples()]
    assert len(set(keys)) == len(keys) == len(names)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_that_is_cut_off_is_never_taken_for_a_short_one(tmp_path, suffix):
    data = b"".join(b'{"text":"%d"}\n' % number for number in range(300))
    whole = PACKED[suffix](data)
    path = tmp_path / f"in{suffix}"
    source = make_source("jsonl")
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"in\.jsonl\.\w+: "):
            read(source, path, 1)
    path.write_bytes(whole + whole)  # one stream after the other is one file
    assert len(read(source, path, 1)) == 600
    path.write_bytes(whole[:50] + bytes(9) + whole[59:])
    with pytest.raises(SourceError):
        read(source, path, 1)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz", ".lz4"])
def test_the_beginning_of_a_compressed_file_that_is_cut_off_is_packed(tmp_path, suffix):
    pack = {
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".lz4": lambda data: pytest.importorskip("lz4.frame").compress(data),
    }[suffix]
    lines = [b'{"text":"%s"}' % random.Random(n).randbytes(20).hex().encode() for n in range(30_000)]
    whole = pack(b"\n".join(lines))
    path = tmp_path / f"in.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) - 30])
    manifest = ss.pack(path, tmp_path / "out", workers=1, on_error="skip")
    assert manifest.samples > 9_000  # a block of bzip2 has 900 KB
    assert manifest.provenance["rejected"] == 1
    texts = [fields["txt"] for _, fields in DatasetReader.open(str(tmp_path / "out")).iter_samples()]
    assert texts == [line[9:-2] for line in lines[: len(texts)]]
    with pytest.raises(SourceError, match="is it cut off"):
        ss.pack(path, tmp_path / "raise", workers=1)


def test_a_file_that_is_cut_off_in_the_header_of_its_second_stream_is_an_error(tmp_path):
    path = tmp_path / "in.jsonl.gz"
    one = gzip.compress(b'{"text":"x"}\n')
    path.write_bytes(one + one[:5])
    with pytest.raises(SourceError, match="is it cut off"):
        read(make_source("jsonl"), path, 1)


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    Path(path).write_bytes(b'{"text":"x"}\nbad\n')
    for number, options in enumerate(({}, {"shuffle": 1})):
        dest = tmp_path / f"out{number}"
        manifest = ss.pack(path, dest, workers=1, on_error="skip", **options)
        assert (manifest.samples, manifest.provenance["rejected"]) == (1, 1)
        assert ss.verify(str(dest), deep=True).sound


@pytest.mark.parametrize("depth", [600, 900])
@pytest.mark.parametrize("value", ["null", "NaN"])
def test_objects_that_lie_deep_within_one_another_are_packed(tmp_path, depth, value):
    deep = "[" * depth + value + "]" * depth
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "x": {deep}}}\n')
    ss.pack(tmp_path / "a.jsonl", tmp_path / "out", workers=1)
    [(_, fields)] = DatasetReader.open(str(tmp_path / "out")).iter_samples()
    assert fields["json"] == f'{{"x":{deep}}}'.encode()
