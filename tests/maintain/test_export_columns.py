"""Export to Parquet and MDS: what was packed comes back by a reader that is not ours."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import shardstream as ss
from shardstream.maintain.export import ExportFormat, export
from shardstream.read.reader import DatasetReader

Samples = dict[str, dict[str, bytes]]


def mds(folder: Path) -> list[dict[str, bytes]]:
    """The stored values of an MDS folder, read from the description of the format alone."""
    rows = []
    index = json.loads((folder / "index.json").read_bytes())
    assert index["version"] == 2
    for shard in index["shards"]:
        assert (shard["version"], shard["format"]) == (2, "mds")
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        count, *offsets = np.frombuffer(data[: 4 * (shard["samples"] + 2)], "<u4").tolist()
        assert count == shard["samples"] == len(offsets) - 1
        assert offsets[-1] == len(data)
        config = json.loads(data[4 * (count + 2) : offsets[0]])
        assert config == {name: value for name, value in shard.items() if name in config}
        for begin, end in itertools.pairwise(offsets):
            at, sizes = begin, []
            for size in shard["column_sizes"]:
                sizes.append(size or int.from_bytes(data[at : at + 4], "little"))
                at += 0 if size else 4
            row = {}
            for name, size in zip(shard["column_names"], sizes, strict=True):
                row[name] = data[at : at + size]
                at += size
            assert at == end
            rows.append(row)
    return rows


def digest(samples: Samples) -> str:
    total = hashlib.sha256()
    for key, fields in samples.items():
        for name in sorted(fields):
            total.update(b"\0".join((key.encode(), name.encode(), fields[name])))
    return total.hexdigest()


def packed(url: Path) -> Samples:
    return {key: dict(fields) for key, fields in DatasetReader.open(str(url)).iter_samples()}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    with ss.Writer(tmp_path / "in", shard_size="8KiB", frame_size="1KiB") as writer:
        for number in range(120):
            writer.write(
                {
                    "__key__": f"ü/{number}",
                    "txt": f"text ü {number} " * (number % 20),
                    "json": {"n": number, "deep": {"a": [1.5, None]}},
                    "cls": number - 50,
                    "png": np.full((3, 4, 3), number, np.uint8),
                    "depth.npy": np.arange(number),
                }
            )
    return tmp_path / "in"


@pytest.mark.parametrize("shard_size", ["1MiB", "10KiB", 1])
def test_mds_holds_what_was_packed(dataset: Path, tmp_path: Path, shard_size: Any) -> None:
    assert export(dataset, tmp_path / "out", "mds", shard_size) == 120
    rows = mds(tmp_path / "out")
    count = len(list((tmp_path / "out").glob("shard.*.mds")))
    assert count == {"1MiB": 1, 1: 120}.get(shard_size, count)
    assert shard_size != "10KiB" or 3 < count < 20
    back = {}
    for row in rows:
        row["cls"] = str(int.from_bytes(row["cls"], "little", signed=True)).encode()
        back[row.pop("__key__").decode()] = row
    assert digest(back) == digest(packed(dataset))
    shard = json.loads((tmp_path / "out" / "index.json").read_bytes())["shards"][0]
    assert dict(zip(shard["column_names"], shard["column_encodings"], strict=True)) == {
        "__key__": "str", "cls": "int", "depth.npy": "bytes", "json": "json", "png": "png", "txt": "str",
    }  # fmt: skip


@pytest.mark.parametrize("shard_size", ["1MiB", "10KiB"])
def test_parquet_holds_what_was_packed(dataset: Path, tmp_path: Path, shard_size: Any) -> None:
    assert export(dataset, tmp_path / "out", "parquet", shard_size) == 120
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[0] == "shard-000000.parquet"
    assert (len(names) > 3) == (shard_size == "10KiB")
    table = pa.concat_tables(pq.read_table(tmp_path / "out" / name) for name in names)
    assert table.schema.field("cls").type == pa.int64()
    assert table.schema.field("txt").type == pa.large_string()
    assert table.schema.field("png").type == pa.large_binary()
    back = {}
    for row in table.to_pylist():
        fields = {name: value for name, value in row.items() if name != "__key__"}
        for name in ("txt", "json", "cls"):
            fields[name] = str(fields[name]).encode()
        back[row["__key__"]] = fields
    assert digest(back) == digest(packed(dataset))


def test_a_missing_field_is_null_in_parquet_and_an_error_in_mds(tmp_path: Path) -> None:
    ss.pack([{"__key__": "a", "txt": "a", "cls": 1}, {"__key__": "b.c", "txt": ""}], tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out", "parquet")
    assert pq.read_table(tmp_path / "out").to_pylist() == [
        {"__key__": "a", "txt": "a", "cls": 1},
        {"__key__": "b.c", "txt": "", "cls": None},
    ]
    with pytest.raises(ss.SourceError, match=r"sample 'b%2Ec' has no field 'cls'"):
        export(tmp_path / "in", tmp_path / "mds", "mds", 1)
    assert not list(tmp_path.glob("mds/*"))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_tokens(tmp_path: Path, dtype: Any) -> None:
    documents = [np.arange(1 + n % 300, dtype=dtype) for n in range(50)]
    with ss.Writer(tmp_path / "in", tokens=dtype) as writer:
        for one in documents:
            writer.write(one)
    export(tmp_path / "in", tmp_path / "parquet", "parquet", "1KiB")
    table = pq.read_table(tmp_path / "parquet")
    assert table.schema.field("tokens").type == pa.large_list(pa.from_numpy_dtype(dtype))
    assert table["tokens"].to_pylist() == [one.tolist() for one in documents]
    export(tmp_path / "in", tmp_path / "mds", "mds", "1KiB")
    for row, one in zip(mds(tmp_path / "mds"), documents, strict=True):
        assert row["tokens"][0] == 0b110  # one axis, its length as uint32
        assert int.from_bytes(row["tokens"][1:5], "little") == len(one)
        assert np.frombuffer(row["tokens"][5:], dtype).tolist() == one.tolist()


def test_a_document_without_a_token(tmp_path: Path) -> None:
    with ss.Writer(tmp_path / "in", tokens=True) as writer:
        writer.write({"__key__": "empty", "tokens": []})
    export(tmp_path / "in", tmp_path / "parquet", "parquet")
    assert pq.read_table(tmp_path / "parquet")["tokens"].to_pylist() == [[]]
    with pytest.raises(ss.SourceError, match="'empty' has no token"):
        export(tmp_path / "in", tmp_path / "mds", "mds")


@pytest.mark.parametrize("format", ["parquet", "mds"])
@pytest.mark.parametrize(
    ("field", "data"), [("txt", b"\xff"), ("json", b"{"), ("cls", b"03"), ("cls", b"1.5"), ("cls", b"9" * 19)]
)
def test_what_a_column_cannot_hold_is_named(tmp_path: Path, format: Any, field: str, data: bytes) -> None:
    ss.pack([{"__key__": "a", field: data}], tmp_path / "in")
    with pytest.raises(ss.SourceError, match=f"sample 'a', field '{field}'"):
        export(tmp_path / "in", tmp_path / "out", format)
    assert not list(tmp_path.glob("out/*"))


def test_images_are_the_bytes_that_were_packed(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (250, 3, 3)).save(image, "JPEG")
    ss.pack([{"jpg": image.getvalue(), "cls": 3}], tmp_path / "in")
    export(tmp_path / "in", tmp_path / "mds", "mds")
    assert mds(tmp_path / "mds")[0]["jpg"] == image.getvalue()
    export(tmp_path / "in", tmp_path / "parquet", "parquet")
    assert pq.read_table(tmp_path / "parquet")["jpg"].to_pylist() == [image.getvalue()]


def test_the_target_is_empty_and_a_shard_below_4_gib(dataset: Path, tmp_path: Path) -> None:
    export(dataset, tmp_path / "out", "mds")
    others: tuple[ExportFormat, ...] = ("mds", "parquet", "webdataset")
    for other in others:
        with pytest.raises(ss.CommitError, match="holds shards already"):
            export(dataset, tmp_path / "out", other)
    with pytest.raises(ss.OptionError, match="less than 4 GiB"):
        export(dataset, tmp_path / "large", "mds", "4GiB")


@pytest.mark.parametrize("format", ["mds", "parquet"])
def test_the_same_dataset_gives_the_same_bytes(dataset: Path, tmp_path: Path, format: Any) -> None:
    for number in range(2):
        export(dataset, tmp_path / str(number), format, "10KiB")
    first = {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir()}
