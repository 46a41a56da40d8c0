"""MDS folders: what is refused, damage, parts of large shards, and arrays without NumPy."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import ShardstreamError, SourceError
from shardstream.packing.sources import Reject, Sample, SourceOptions, make_source, recognise
from shardstream.packing.sources.leaves import DTYPES, npy
from shardstream.packing.sources.mds_values import Config, kinds
from shardstream.storage.inputs import expand
from shardstream.testing.sources import read_source
from tests.data.foreign import make

FOREIGN = Path(make.__file__).parent


def read(folder: Path, **options) -> list[Sample | Reject]:  # type: ignore[no-untyped-def]
    return read_source(make_source("mds", SourceOptions(**options)), expand([str(folder)]), 1 << 30)


def changed(folder: Path, change: Callable[[dict], None]) -> Path:  # type: ignore[type-arg]
    shutil.copytree(FOREIGN / "mds" / "plain", folder)
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_a_folder_is_recognised_and_packed_by_what_its_columns_hold(tmp_path: Path) -> None:
    shutil.copytree(FOREIGN / "mds" / "zstd", tmp_path / "in")
    assert recognise(expand([str(tmp_path / "in")])) == "mds"
    ss.pack(tmp_path / "in", tmp_path / "out", keep=["n"], workers=2)
    found = {sample["__key__"]: sample for sample in ss.StreamingDataset(str(tmp_path / "out"), decode=False)}
    assert len(found) == 7
    for n, row in enumerate(make.rows()):
        [sample] = [one for key, one in found.items() if key.endswith(f"row%2E{n}")]
        assert bytes(sample["txt"]) == row["text"].encode()
        assert bytes(sample["image.png"]) == row["image"]


def test_pickles_and_unknown_encodings_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"index.json: column 'any' holds pickles, which may run any code"):
        read(FOREIGN / "mds-pickle")
    for encoding in ("list[jpeg]", "jpeg_array", "ndarray:int7", "ndarray:int8:a", "int:4", "new"):
        index = changed(tmp_path / encoding, functools.partial(_rename, encoding=encoding))
        with pytest.raises(SourceError, match=r"index.json: column 'text' has the encoding .* not known"):
            read(index)


def test_a_column_that_nobody_reads_may_hold_pickles(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"To leave it out, say with --keep which columns field json is to"):
        read(FOREIGN / "mds-pickle")
    (index,) = json.loads((FOREIGN / "mds-pickle" / "index.json").read_text())["shards"]
    others = [name for name in index["column_names"] if name != "any"]
    found = read(FOREIGN / "mds-pickle", column=(("txt", others[0]),), keep=())
    assert len(found) == index["samples"]
    assert all(isinstance(one, Sample) and set(one.fields) == {"txt"} for one in found)
    with pytest.raises(SourceError, match="column 'any' holds pickles"):
        read(FOREIGN / "mds-pickle", column=(("txt", others[0]),), keep=("any",))


def test_what_becomes_a_field_is_known_before_a_row_is_read(tmp_path: Path) -> None:
    index = changed(tmp_path / "text", functools.partial(_rename, encoding="pkl"))
    with pytest.raises(SourceError, match="column 'text' holds pickles"):
        read(index, keep=("n",))
    found = kinds(Config(["a", "b", "c"], ["ndarray:int7", "ndarray:int8", "new"], [None] * 3))
    assert found == {"a": "other", "b": "bytes", "c": "other"}


def _rename(index: dict, encoding: str) -> None:  # type: ignore[type-arg]
    for shard in index["shards"]:
        shard["column_encodings"] = [
            encoding if name == "text" else old
            for name, old in zip(shard["column_names"], shard["column_encodings"], strict=True)
        ]


def test_shards_and_indexes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    gone = changed(tmp_path / "gone", lambda index: None)
    (gone / "shard.00001.mds").unlink()
    with pytest.raises(SourceError, match=r"index.json: its shard shard.00001.mds is not in the input"):
        read(gone)
    fewer = changed(tmp_path / "fewer", lambda index: index["shards"][0].update(samples=3))
    with pytest.raises(SourceError, match=r"shard.00000.mds: it holds 4 samples, and index.json says 3"):
        read(fewer)
    old = changed(tmp_path / "old", lambda index: index["shards"][0].update(version=1))
    with pytest.raises(SourceError, match="mds of version 1 is not MDS of version 2"):
        read(old)
    more = changed(tmp_path / "more", lambda index: index["shards"].pop())
    found = read(more)
    [reject] = [item for item in found if isinstance(item, Reject)]
    assert reject.where.endswith("shard.00001.mds")
    assert len(found) in (4, 5)
    (more / "index.json").write_text("[]")
    with pytest.raises(SourceError, match="not the index of an MDS folder"):
        read(more)


@pytest.mark.parametrize("name", ["plain", "zstd", "gz", "bz2", "br", "snappy"])
def test_a_cut_shard_is_an_error_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    shutil.copytree(FOREIGN / "mds" / name, tmp_path / "in")
    [path, _] = sorted((tmp_path / "in").glob("shard*"))
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"shard\.00000"):
            read(tmp_path / "in")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(["plain", "zstd", "br"]), place=st.floats(0, 0.9999), byte=st.integers(0, 255))
def test_a_changed_shard_gives_typed_errors_or_samples(
    tmp_path: Path, name: str, place: float, byte: int
) -> None:
    shutil.copytree(FOREIGN / "mds" / name, tmp_path / name, dirs_exist_ok=True)
    [path, _] = sorted((FOREIGN / "mds" / name).glob("shard*"))
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] = byte
    (tmp_path / name / path.name).write_bytes(data)
    try:
        found = read(tmp_path / name)
    except ShardstreamError as error:
        found = [error]
    assert len(found) == 7 or path.name in str(found[0])


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4))
def test_arrays_are_the_files_that_numpy_writes(dtype: str, shape: list[int]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    buffer = io.BytesIO()
    np.save(buffer, array)
    assert npy(dtype, shape, array.tobytes()) == buffer.getvalue()
    with pytest.raises(SourceError, match="are no array of"):
        npy(dtype, shape, array.tobytes() + b"1")


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("str_int", b"1x"),
        ("str_int", b"1" * 5000),
        ("str_float", b"."),
        ("json", b"[" * 3000),
        ("json", b"{"),
    ],
)
def test_a_value_that_is_none_of_its_encoding_is_a_reject(tmp_path: Path, encoding: str, data: bytes) -> None:
    head = json.dumps(
        {"column_names": ["text", "x"], "column_encodings": ["str", encoding], "column_sizes": [None, None]}
    ).encode()
    sample = len(b"t").to_bytes(4, "little") + len(data).to_bytes(4, "little") + b"t" + data
    begin = 12 + len(head)
    places = begin.to_bytes(4, "little") + (begin + len(sample)).to_bytes(4, "little")
    shard = (1).to_bytes(4, "little") + places + head + sample
    (tmp_path / "a.mds").write_bytes(shard)
    entry = {
        "version": 2, "format": "mds", "samples": 1, "raw_data": {"basename": "a.mds", "bytes": len(shard)},
        "column_names": ["text", "x"], "column_encodings": ["str", encoding],
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
    (reject,) = read(tmp_path)
    assert isinstance(reject, Reject)
    assert reject.where == f"{tmp_path / 'a.mds'}, sample 0"
