"""Lines of JSON that are laid out many at once: the same bytes as one by one, and the same rejects."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.packing.sources import SourceOptions, json_block, jsonl, make_source
from shardstream.packing.sources.list_block import ListBlock
from shardstream.storage.inputs import expand

SMALL: dict[str, Any] = {"frame_size": "4KiB", "shard_size": "64KiB", "workers": 1, "max_rejects": 1}
IDS = st.one_of(
    st.integers(0, 30),
    st.text(max_size=4),
    st.sampled_from(
        ["a/b", "a.b/c.d.e", ".a", "a/", "a//b", "xxh3-1", "k" * 110, "é", "..", "a%2Eb", None, 1.5, True, ""]
    ),
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
)
ROWS = st.fixed_dictionaries(
    {"text": st.one_of(st.text(max_size=40), st.text(alphabet="ab", min_size=600, max_size=900))},
    optional={"id": IDS, "key": IDS, "__key__": IDS, "n": VALUES},
)
LINES = st.one_of(
    ROWS.map(json.dumps),
    st.sampled_from(["", " ", "[1]", '{"text": 3}', '{"n": 1}', "{", '{"text": "\\ud800"}']),
)


def files(folder: Path) -> dict[str, bytes]:
    claim = ".pack-claim.json"  # of a pack that failed, which differs in its owner
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != claim
    }


def both(source: Path, folder: Path, **options: Any) -> int:
    """Pack a file both ways, and compare all files. Returns how many samples came in blocks."""
    counts = []

    def counted(*arguments: Any) -> ListBlock | None:
        found = json_block.json_block(*arguments)
        counts.append(len(found.keys) if found else 0)
        return found

    with pytest.MonkeyPatch.context() as patch:
        for name, way in (("many", counted), ("single", lambda *_: None)):
            patch.setattr(jsonl, "json_block", way)
            try:
                ss.pack(source, folder / name, **{**SMALL, **options})
            except ss.ShardstreamError as error:
                (folder / name).mkdir(exist_ok=True)
                (folder / name / "error").write_text(str(error).replace(f"/{name}", ""))
    assert files(folder / "many") == files(folder / "single")
    return sum(counts)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(LINES, min_size=1, max_size=12),
    st.sampled_from([None, "none", "id", "n", "text"]),
    st.sampled_from(["text", "id"]),
    st.sampled_from(["skip", "raise"]),
)
def test_the_bytes_and_the_rejects_are_those_of_single_lines(
    rows: list[str], key: str | None, text_key: str, on_error: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        source.write_text("\n".join(rows))
        both(source, Path(folder), key=key, text_key=text_key, on_error=on_error)


@pytest.mark.parametrize(
    "ids", [lambda n: n, lambda n: f"dir.a/f-{n}.c", lambda n: f"{n}/é" if n == 9 else f"{n}"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_usual_rows_come_in_blocks(tmp_path: Path, ids: Any, end: str) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"id": ids(n), "text": f"line {n}\n" * (n % 90), "n": n} for n in range(500)]
    source.write_text("\ufeff" + "".join(json.dumps(row) + end for row in rows), newline="")
    assert both(source, tmp_path) >= (400 if ids(9) != "9/é" else 0)


@pytest.mark.parametrize("change", [{"id": "a7"}, {"text": None}, {"n": float("nan")}])
def test_one_odd_row_among_many(tmp_path: Path, change: dict[str, Any]) -> None:
    rows: list[dict[str, Any]] = [{"id": f"a{n}", "text": f"text {n}" * 9, "n": n} for n in range(90)]
    rows[60] |= change
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both(tmp_path / "in.jsonl", tmp_path, on_error="skip")


def test_a_compressed_file_and_several_files(tmp_path: Path) -> None:
    text = "".join(json.dumps({"id": f"i{n}", "text": "abc " * n}) + "\n" for n in range(300))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "in" / "b.jsonl").write_text(text)
    assert both(tmp_path / "in", tmp_path) >= 500


def test_lines_across_the_reads_and_the_cuts_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_CHUNK", 512)
    rows = [{"id": f"i{n}", "text": "x" * (n * 37 % 1800)} for n in range(150)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert both(tmp_path / "in.jsonl", tmp_path) == 150
    source: Any = make_source("jsonl", SourceOptions())
    [file] = expand([str(tmp_path / "in.jsonl")], source.extensions)
    for target in (100, 5_000):
        found = [
            key
            for task in source.plan([file], target)
            for block in source.read_blocks(task)
            for key in (block.keys if isinstance(block, ListBlock) else [block.key])
        ]
        assert found == [row["id"] for row in rows]
