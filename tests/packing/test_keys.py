"""What names a sample: by default, with --key, in appends; the same for any shuffle and workers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import OptionError, SourceError
from shardstream.packing.keys import described
from shardstream.packing.planning import Plan
from shardstream.packing.sources.file_keys import key_bases
from shardstream.read.reader import DatasetReader
from shardstream.storage.inputs import FileInfo
from tests.corpora import digests, lines, sound, texts


def restarting(folder: Path, files: int = 2, rows: int = 2, step: int = 0) -> list[Path]:
    """Files whose ids begin again in each, or `step` higher."""
    return [
        lines(
            folder / f"{chr(97 + f)}.jsonl",
            [{"id": f * step + n, "text": f"{f}-{n}"} for n in range(rows)],
        )
        for f in range(files)
    ]


def keys(dest: Path) -> list[str]:
    return [key for key, _ in DatasetReader.open(str(dest)).iter_samples()]


@pytest.mark.parametrize("shuffle", [None, 0, 7])
@pytest.mark.parametrize("workers", [1, 2])
def test_ids_that_begin_again_in_each_file_lose_nothing(
    tmp_path: Path, shuffle: int | None, workers: int
) -> None:
    dest = tmp_path / "out"
    manifest = ss.pack(restarting(tmp_path, 3, 50), dest, shuffle=shuffle, workers=workers, on_error="skip")
    assert (manifest.samples, manifest.provenance["rejected"]) == (150, 0)
    assert sorted(texts(dest)) == sorted((f"{'abc'[f]}/{n}", f"{f}-{n}") for f in range(3) for n in range(50))
    assert sound(dest)


def test_one_file_keeps_the_keys_that_it_had(tmp_path: Path) -> None:
    (path,) = restarting(tmp_path, 1)
    manifest = ss.pack(path, tmp_path / "out", workers=1)
    assert keys(tmp_path / "out") == ["0", "1"]
    assert manifest.provenance["keys"] == "id"


def test_a_key_has_the_path_below_the_folder_without_extensions(tmp_path: Path) -> None:
    for name in ("x.v1.jsonl.gz", "sub/x.ndjson", "sub/x.jsonl"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = b'{"id":"a.b/c","text":"1"}\n{"text":"2"}\n'
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    ss.pack(tmp_path / "in", tmp_path / "out", format="jsonl", workers=1)
    assert keys(tmp_path / "out") == [
        "x%2Ev1/a.b/c", "x%2Ev1-000000000002",
        "sub/x/a.b/c", "sub/x-000000000026",
        "sub/x~2/a.b/c", "sub/x~2-000000000026",
    ]  # fmt: skip


ROWS = [{"id": 1, "url": "u/1", "n": 5, "meta": {"doi": "d.1"}, "text": "a"},
        {"id": 1, "url": "u/2", "n": 6, "meta": {"doi": "d.2"}, "text": "b"}]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("url", ["u/1", "u/2"]),
        ("n", ["5", "6"]),
        ("meta.doi", ["d%2E1", "d%2E2"]),
        ("none", ["rows-000000000000", "rows-000000000069"]),
    ],
)
def test_a_key_that_was_named_is_taken_as_it_is(tmp_path: Path, key: str, wanted: list[str]) -> None:
    path = lines(tmp_path / "rows.jsonl", ROWS)
    other = lines(tmp_path / "other.jsonl", [{"text": "other", **ROWS[0], "url": "u/3", "n": 7}])
    ss.pack(path, tmp_path / "out", key=key, workers=1)
    assert keys(tmp_path / "out") == wanted
    if key in ("url", "n"):  # with several files, too
        ss.pack([path, other], tmp_path / "two", key=key, workers=1)
        assert keys(tmp_path / "two") == [*wanted, "u/3" if key == "url" else "7"]


def test_a_key_named_twice_in_a_shard_is_a_reject_that_is_named(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "rows.jsonl", [{"u": "x", "text": str(n)} for n in (1, 2)] + [{"u": "y", "text": ""}]
    )
    with pytest.raises(SourceError, match=r"rows\.jsonl, byte 24: the key 'x' occurs twice"):
        ss.pack(path, tmp_path / "out", key="u", workers=1)
    manifest = ss.pack(path, tmp_path / "out", key="u", workers=1, on_error="skip")
    assert (manifest.samples, manifest.provenance["rejected"]) == (2, 1)
    (row,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert row == {"where": f"{path}, byte 24", "reason": "the key 'x' occurs twice"}


@pytest.mark.parametrize("value", [None, "", 1.5, True, [1], {"a": 1}])
def test_a_row_that_the_named_key_cannot_name_is_rejected(tmp_path: Path, value: Any) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"u": "x", "text": "1"}, {"u": value, "text": "2"}, {"text": "3"}])
    with pytest.raises(SourceError, match=r"rows\.jsonl:2: 'u' is .*no key"):
        ss.pack(path, tmp_path / "out", key="u", workers=1)
    ss.pack(path, tmp_path / "out", key="u", workers=1, on_error="skip", max_rejects=0.7)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [row["where"] for row in rows] == [f"{path}:2", f"{path}:3"]
    assert "no column 'u'" in rows[1]["reason"]
    assert texts(tmp_path / "out") == [("x", "1")]


@pytest.mark.parametrize("key", ["", 5])
def test_what_is_no_key_is_refused(tmp_path: Path, key: Any) -> None:
    with pytest.raises(OptionError, match="key="):
        ss.pack(restarting(tmp_path), tmp_path / "out", key=key)


def test_formats_whose_files_are_the_names_take_no_key(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(OptionError, match=r"key is for --format .*jsonl.*, not for text"):
        ss.pack(tmp_path / "a.txt", tmp_path / "out", key="u")


@pytest.mark.parametrize("first", [1, 2])
def test_an_append_goes_on_with_the_keys_of_its_dataset(tmp_path: Path, first: int) -> None:
    files = restarting(tmp_path, 5, step=2)
    dest = tmp_path / "out"
    ss.pack(files[:first], dest, workers=1)
    for more in (files[2:3], files[3:5]):
        ss.pack(more, dest, workers=1, append=True)
    with_path = ["a/0", "a/1", "b/2", "b/3", "c/4", "c/5", "d/6", "d/7", "e/8", "e/9"]
    assert keys(dest) == (with_path if first == 2 else ["0", "1", "4", "5", "6", "7", "8", "9"])
    assert sound(dest)


def test_an_append_to_a_dataset_of_version_0_1_keeps_its_keys(tmp_path: Path) -> None:
    files = restarting(tmp_path, 3, step=2)
    manifest = ss.pack(files[0], tmp_path / "out", workers=1)
    record = {name: value for name, value in manifest.provenance.items() if name != "keys"}
    old = ss.Manifest.build("samples", manifest.fields, manifest.shards, record)
    (tmp_path / "out" / "manifest.json").write_bytes(old.to_bytes())
    made = ss.pack(files[1:], tmp_path / "out", workers=1, append=True)
    assert keys(tmp_path / "out") == ["0", "1", "2", "3", "4", "5"]
    assert made.provenance["appended"][0]["keys"] == "id"
    ss.pack(files, tmp_path / "out", workers=1, append=True, key="none")
    assert keys(tmp_path / "out")[6:8] == ["a-000000000000", "a-000000000025"]


def test_the_rule_is_recorded_and_told(tmp_path: Path) -> None:
    files = restarting(tmp_path)
    for number, (sources, key, rule, told) in enumerate([
        (files[0], None, "id", "__key__, key or id; "),
        (files, None, "path/id", "the path of the file without extensions / __key__"),
        (files[0], "id", "field", "the value of id, as it is"),
        (files, "none", "number", "the place of the row"),
    ]):  # fmt: skip
        plan = ss.pack(sources, tmp_path / "dry", key=key, dry_run=True)
        assert isinstance(plan, Plan)
        record = ss.pack(sources, tmp_path / f"out{number}", key=key, workers=1).provenance
        assert record["keys"] == rule
        assert told in described(record)
        assert plan.keys == described(record)


def test_the_seed_and_the_workers_do_not_change_the_keys(tmp_path: Path) -> None:
    files = restarting(tmp_path, 4, 30)
    seen = {}
    for workers in (1, 2):
        for shuffle in (None, 3):
            dest = tmp_path / f"{workers}-{shuffle}"
            ss.pack(files, dest, workers=workers, shuffle=shuffle, shard_size=400)
            seen[workers, shuffle] = digests(dest), sorted(keys(dest))
    assert seen[1, None] == seen[2, None]
    assert seen[1, 3] == seen[2, 3]
    assert seen[1, 3][1] == seen[1, None][1]


names = st.text(st.sampled_from("ab./é %~-1"), min_size=1, max_size=9).filter(lambda n: n.strip("./"))


@given(st.lists(names, min_size=1, max_size=6))
def test_bases_are_valid_and_unique_for_any_names(wanted: list[str]) -> None:
    from shardstream.format.names import check_key

    files = [FileInfo(f"/root/{name}.JSONL", 1, "/root") for name in wanted]
    bases = key_bases(files, (".jsonl", ".json"))
    assert len(set(bases)) == len(files)
    for base in bases:
        check_key(f"{base}/id")
        check_key(f"{base}-000000000000")


def test_a_format_that_says_what_its_names_are_is_quoted() -> None:
    record: dict[str, Any] = {"options": {"format": "webdataset"}}
    own = "the name of the members without their extension"
    assert described(record) == described({**record, "keys": "id"}) == own
    assert described({**record, "keys": "path/id"}) == f"the path of the file without extensions / {own}"
