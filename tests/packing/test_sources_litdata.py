"""LitData folders: what is refused by name, and damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import ShardstreamError, SourceError
from shardstream.packing.sources import Reject, make_source
from shardstream.storage.inputs import expand
from shardstream.testing.sources import read_source
from tests.data.foreign import make

LITDATA = Path(make.__file__).parent / "litdata"
ARROW = Path(make.__file__).parent / "litdata-arrow"


def read(folder: Path):  # type: ignore[no-untyped-def]
    return read_source(make_source("litdata"), expand([str(folder)]), 1 << 30)


def changed(folder: Path, **config: object) -> Path:
    shutil.copytree(LITDATA / "plain", folder, dirs_exist_ok=True)
    index = json.loads((LITDATA / "plain" / "index.json").read_text())
    index["config"].update(config)
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_a_folder_is_packed_with_what_its_columns_hold(tmp_path: Path) -> None:
    ss.pack(LITDATA / "batch", tmp_path / "out", format="litdata", keep=["n"], workers=2)
    found = {sample["__key__"]: sample for sample in ss.StreamingDataset(str(tmp_path / "out"), decode=False)}
    assert len(found) == 7
    for number, row in enumerate(make.rows()):
        [sample] = [one for key, one in found.items() if key.endswith(f"row%2E{number}")]
        assert bytes(sample["image.png"]) == row["image"]
        assert bytes(sample["more.image.jpg"]).startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"encryption": {"level": "chunk"}}, "its chunks are encrypted"),
        ({"item_loader": "TokensLoader"}, "its chunks are for TokensLoader"),
        ({"compression": "lz4"}, "its compression 'lz4' is not known"),
        ({"data_format": ["pickle"] * 14}, "column 'id' holds pickles, which may run any code"),
        ({"data_format": ["json", "image"] * 7}, "column 'id' has the format 'json', which is not known"),
        ({"data_format": ["no_header_tensor:10"] * 14}, "no_header_tensor:10', which is not known"),
        ({"data_format": ["str"]}, "14 columns and 1 formats"),
        ({"data_spec": "[2, {}]"}, "its data_spec is not known"),
        ({"data_spec": None}, "its data_spec is not known"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, config: dict[str, object], said: str) -> None:
    with pytest.raises(SourceError, match=f"index.json: .*{said}"):
        read(changed(tmp_path, **config))


def test_chunks_and_indexes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = changed(tmp_path / "in")
    (folder / "other.bin").write_bytes(b"?")
    [reject] = [item for item in read(folder) if isinstance(item, Reject)]
    assert reject.where.endswith("other.bin")
    (folder / "chunk-0-1.bin").unlink()
    with pytest.raises(SourceError, match=r"index.json: its chunk chunk-0-1.bin is not in the input"):
        read(folder)


@pytest.mark.parametrize("name", make.LITDATA)
def test_a_cut_chunk_is_an_error_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    shutil.copytree(LITDATA / name, tmp_path / "in")
    [path, _] = sorted((tmp_path / "in").glob("chunk*"))
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=path.name):
            read(tmp_path / "in")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(list(make.LITDATA)), place=st.floats(0, 0.9999), byte=st.integers(0, 255))
def test_a_changed_chunk_gives_typed_errors_or_samples(
    tmp_path: Path, name: str, place: float, byte: int
) -> None:
    shutil.copytree(LITDATA / name, tmp_path / name, dirs_exist_ok=True)
    [path, _] = sorted((LITDATA / name).glob("chunk*"))
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] = byte
    (tmp_path / name / path.name).write_bytes(data)
    try:
        found = read(tmp_path / name)
    except ShardstreamError as error:
        found = [error]
    assert len(found) == 7 or path.name in str(found[0])


@pytest.mark.parametrize("name", make.ARROW)
def test_rows_in_arrows_format_behind_a_chunk(tmp_path: Path, name: str) -> None:
    ss.pack(ARROW / name, tmp_path / "out", format="litdata", column={"txt": "text"}, key="id", workers=1)
    found = list(ss.StreamingDataset(str(tmp_path / "out")))
    for sample, row in zip(found, make.rows(), strict=True):
        assert sample["txt"] == row["text"]
        more = {"tags": ["a", row["id"]], "deep": {"x": row["n"] + 3}}
        assert sample["json"] == {"id": row["id"], "n": row["n"], "half": row["half"], "more": more}


@pytest.mark.parametrize("name", make.ARROW)
def test_a_cut_chunk_with_rows_in_arrows_format_is_an_error(tmp_path: Path, name: str) -> None:
    shutil.copytree(ARROW / name, tmp_path / "in")
    [path, _] = sorted((tmp_path / "in").glob("chunk*"))
    whole = path.read_bytes()
    for size in range(0, len(whole), 29):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=path.name):
            read(tmp_path / "in")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 0.9999), byte=st.integers(0, 255))
def test_changed_rows_in_arrows_format_give_typed_errors_or_samples(
    tmp_path: Path, place: float, byte: int
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(ARROW / "plain", folder, dirs_exist_ok=True)
    [path, _] = sorted((ARROW / "plain").glob("chunk*"))
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] = byte
    (folder / path.name).write_bytes(data)
    try:
        found = read(folder)
    except ShardstreamError as error:
        found = [error]
    assert len(found) == 7 or path.name in str(found[0])
