"""Rows that are laid out many at once: the same bytes as one by one, and the same rejects."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import CorruptionError
from shardstream.packing.sources import SourceOptions, arrow_rows, make_source, row_block
from shardstream.packing.sources.row_block import RowBlock
from shardstream.packing.writer import SampleWriter
from shardstream.storage.inputs import expand

SMALL: dict[str, Any] = {"frame_size": "4KiB", "shard_size": "16KiB", "workers": 1, "on_error": "skip"}
KEYS = st.one_of(
    st.integers(0, 30).map(str), st.text(max_size=4), st.sampled_from(["a/b", "xxh3-1", "k" * 110, "é", ".."])
)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def both(table: pa.Table, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    """Pack a table both ways, and compare all files. Returns how many blocks there were."""
    folder.mkdir()
    source = folder / "rows.parquet"
    pyarrow.parquet.write_table(table, source, row_group_size=40)
    blocks = []
    make = arrow_rows.row_block

    def counted(*arguments: Any) -> RowBlock | None:
        found = make(*arguments)
        blocks.extend([found] if found else [])
        return found

    def none(*_: Any) -> None:
        return None

    for name, way in (("many", counted), ("single", none)):
        monkeypatch.setattr(arrow_rows, "row_block", way)
        try:
            ss.pack(source, folder / name, **{**SMALL, "max_rejects": 1, **options})
        except ss.ShardstreamError as error:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "error").write_text(str(error).replace(f"/{name}", ""))
    assert files(folder / "many") == files(folder / "single")
    return len(blocks)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_table_gives_the_same_bytes_both_ways(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    count = data.draw(st.integers(1, 60))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return data.draw(st.lists(values, min_size=count, max_size=count))

    texts = st.text(max_size=20) if data.draw(st.booleans()) else st.none() | st.binary(max_size=3000)
    table = {
        data.draw(st.sampled_from(["id", "key", "name"])): column(KEYS),
        "text": column(texts),
        "n": column(st.none() | st.integers(-5, 5)),
        "score": column(st.sampled_from([0.5, 1.0, math.nan])),
        "raw": [b"x"] * count,
    }
    keep = data.draw(st.sampled_from([None, ["n", "score"], ["score", "n"], []]))
    fields = data.draw(st.sampled_from([{"txt": "text"}, {"txt": "text", "bin": "raw"}, {"json": "text"}]))
    key = data.draw(st.sampled_from([None, "none", "n"]))
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("rows") / "in"
        both(pa.table(table), folder, patch, keep=keep, column=fields, key=key)


COUNT = 300
TABLES: dict[str, Callable[[], tuple[dict[str, Any], dict[str, Any]]]] = {
    "text": lambda: ({"id": [f"{n:04d}" for n in range(COUNT)], "text": ["é" * n for n in range(COUNT)]}, {}),
    "numbers": lambda: ({"id": range(COUNT), "text": ["t"] * COUNT, "n": [1.5] * COUNT}, {"keep": ["n"]}),
    "none": lambda: ({"text": ["t"] * COUNT, "n": [None, 1] * (COUNT // 2)}, {"key": "none", "keep": ["n"]}),
    "large": lambda: (
        {"id": range(COUNT), "text": pa.array(["t" * n * 99 for n in range(COUNT)], pa.large_string())}, {},
    ),
    "days": lambda: ({"text": ["t"] * COUNT, "d": [datetime.date(2020, 1, 1)] * COUNT}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TABLES))
def test_usual_tables_come_in_blocks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, options = TABLES[name]()
    assert both(pa.table(columns), tmp_path / "in", monkeypatch, **options) > 0


def test_a_key_that_comes_again_is_the_same_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"id": [n % 290 for n in range(COUNT)], "text": ["t" * n for n in range(COUNT)]}
    assert both(pa.table(columns), tmp_path / "in", monkeypatch, shard_size="1MiB") > 0
    rejects = (tmp_path / "in" / "many" / "rejects.jsonl").read_text()
    assert rejects.count("occurs twice") == 10


def test_files_of_several_names_put_the_name_before_the_key(tmp_path: Path) -> None:
    for name in ("a.b", "c"):
        table = pa.table({"id": range(3), "text": ["t"] * 3})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    ss.pack(tmp_path, tmp_path / "out", format="parquet", workers=1)
    ds = ss.StreamingDataset(str(tmp_path / "out"), shuffle=False)
    assert [sample["__key__"] for sample in ds] == [
        f"{name}/{n}" for name in ("a%2Eb", "c") for n in range(3)
    ]


def test_parts_of_large_record_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"id": range(3000), "text": [f"text {n}" for n in range(3000)]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    ss.pack(tmp_path / "a.arrow", tmp_path / "many", workers=1)
    monkeypatch.setattr(arrow_rows, "row_block", lambda *_: None)
    ss.pack(tmp_path / "a.arrow", tmp_path / "single", workers=1)
    assert files(tmp_path / "many") == files(tmp_path / "single")


def test_blocks_of_wide_tables_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, wide = 8192, 260  # 2 GiB of headers
    table = pa.table({"id": range(count), **{f"c{n}": ["x"] * count for n in range(wide)}})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    options = SourceOptions(column=tuple((f"c{n}", f"c{n}") for n in range(wide)), keep=())
    source, found = make_source("parquet", options), expand([str(tmp_path / "a.parquet")])
    blocks = [block for task in source.plan(found, 1 << 30) for block in source.read_blocks(task)]
    assert len(blocks) > 20
    assert all(isinstance(block, RowBlock) for block in blocks)
    assert [key for block in blocks for key in block.keys] == [str(number) for number in range(count)]
    layout = blocks[0].lay_out()
    assert 1 << 20 < len(layout.raw) <= 64 << 20
    assert len(layout.raw) == layout.ends[-1]
    monkeypatch.setattr(row_block, "_LAID_OUT", 1 << 14)
    small = pa.table({"id": range(300), "text": ["t" * n for n in range(300)]})
    assert both(small, tmp_path / "in", monkeypatch, keep=["text"]) > 40


@pytest.mark.parametrize("fault", ["lost", "changed"])
def test_what_a_block_loses_ends_the_pack(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "rows.parquet"
    table = pa.table({"id": range(COUNT), "text": ["some text"] * COUNT})
    pyarrow.parquet.write_table(table, source, row_group_size=40)
    if fault == "lost":
        add = SampleWriter.add_block
        monkeypatch.setattr(
            SampleWriter, "add_block", lambda self, block: "40" in block.keys or add(self, block)
        )
    else:
        put = SampleWriter._put_frame

        def flip(self: SampleWriter, raw: Any, *more: Any, **rest: Any) -> None:
            data = bytearray(raw)
            data[515] ^= 1
            put(self, memoryview(data), *more, **rest)

        monkeypatch.setattr(SampleWriter, "_put_frame", flip)
    with pytest.raises(CorruptionError, match=r"the sources gave .* nothing was committed"):
        ss.pack(source, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()
