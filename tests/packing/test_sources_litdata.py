"""LitData folders: what is refused by name, and damage."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import ShardstreamError, SourceError
from shardstream.packing.sources import Reject, Sample, SourceOptions, make_source
from shardstream.packing.sources.litdata_nested import nested
from shardstream.storage.inputs import expand
from shardstream.testing.sources import read_source
from tests.data.foreign import make

LITDATA = Path(make.__file__).parent / "litdata"
ARROW = Path(make.__file__).parent / "litdata-arrow"


def read(folder: Path, **options):  # type: ignore[no-untyped-def]
    return read_source(make_source("litdata", SourceOptions(**options)), expand([str(folder)]), 1 << 30)


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
        ({"item_loader": "TokensLoader"}, "chunks of tokens in the format "),
        ({"item_loader": "ParquetLoader"}, "its chunks are for ParquetLoader.* ss.pack"),
        ({"compression": "lz4"}, "its compression 'lz4' is not known"),
        ({"data_format": ["pickle"] * 14}, "column 'id' holds pickles, which may run any code"),
        ({"data_format": ["graph", "image"] * 7}, "column 'id' has the format 'graph', which is not known"),
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


def tokens(folder: Path, form: str, dtype: str, documents: list[list[int]]) -> Path:
    """A folder as litdata 0.2.76 writes it with `optimize(..., item_loader=TokensLoader())`."""
    folder.mkdir()
    items = [np.array(ids, dtype).tobytes() for ids in documents]
    bounds = np.cumsum([4 * (len(items) + 2), *map(len, items)]).astype("<u4")
    (folder / "chunk-0-0.bin").write_bytes(struct.pack("<I", len(items)) + bounds.tobytes() + b"".join(items))
    chunk = {"filename": "chunk-0-0.bin", "chunk_size": len(items), "dim": sum(map(len, documents))}
    config = {"data_format": [form], "data_spec": None, "item_loader": "TokensLoader"}
    (folder / "index.json").write_text(json.dumps({"chunks": [chunk], "config": config}))
    return folder


@pytest.mark.parametrize(
    ("form", "dtype", "options", "stored"),
    [
        ("no_header_tensor:18", "<i8", {}, "uint32"),
        ("no_header_tensor:18", "<i8", {"dtype": "uint16"}, "uint16"),
        ("no_header_numpy:5", "<u2", {}, "uint16"),
    ],
)
def test_chunks_of_tokens_are_documents(
    tmp_path: Path, form: str, dtype: str, options: dict[str, str], stored: str
) -> None:
    documents = [list(range(70)), [5], list(range(40, 90))]
    folder = tokens(tmp_path / "in", form, dtype, documents)
    manifest = ss.pack(folder, tmp_path / "out", format="litdata", workers=1, **options)  # type: ignore[call-overload]
    assert (manifest.kind, manifest.samples, manifest.tokens) == ("tokens", 3, 121)
    assert manifest.fields[0].dtype == stored
    blocks = ss.TokenDataset(tmp_path / "out", seq_len=40)
    flat = np.concatenate(documents)
    assert [block["tokens"].tolist() for block in blocks] == [
        flat[at : at + 41].tolist() for at in (0, 40, 80)
    ]


def test_ids_that_do_not_fit_are_rejects(tmp_path: Path) -> None:
    folder = tokens(tmp_path / "in", "no_header_tensor:18", "<i8", [[1, 2], [70_000], [-1]])
    with pytest.raises(SourceError, match="document 1: ids from 70000 to 70000 do not fit uint16"):
        ss.pack(folder, tmp_path / "out", format="litdata", dtype="uint16", workers=1)
    with pytest.raises(SourceError, match="document 2: ids from -1 to -1 do not fit uint32"):
        ss.pack(folder, tmp_path / "out", format="litdata", workers=1)


# As `JsonSerializer` of litdata 0.2.76 writes them.
NESTED = {
    "0b": None, "0a01": True, "0702000000c3a4": "\xe4", "080500000000000000": 5, "09000000000000f8bf": -1.5,
    "0100000000": [], "010200000001000000610100000062": ["a", "b"], "0301000000000000000000f83f": [1.5],
    "020200000001000000000000000200000000000000": [1, 2], "04020000000100": [True, False],
    "0602000000020000000100000061010000006212010000000000000010110100000078130000000000000440":
        [{"a": 1, "b": None}, {"a": "x", "b": 2.5}],
    "0502000000010000007805010000000100000079000c0000005b312c6e756c6c2c227a225d010000007a0100000000":
        {"x": {"y": [1, None, "z"]}, "z": []},
}  # fmt: skip


def test_nested_values() -> None:
    for data, value in NESTED.items():
        assert nested(bytes.fromhex(data)) == value
    assert nested(b'{"a": [1, null]}') == {"a": [1, None]}  # of older releases


@pytest.mark.parametrize(
    "data", [b"", b"\x0c", b"\x06" + bytes(8), b"\x0b\x0b", b"\x05\1\0\0\0\0\0\0\0" * 300]
)
def test_nested_values_that_are_damaged(data: bytes) -> None:
    with pytest.raises(SourceError, match="a nested value"):
        nested(data)


@given(
    data=st.binary(max_size=60)
    | st.tuples(st.sampled_from([*NESTED]), st.integers(0, 60)).map(
        lambda cut: bytes.fromhex(cut[0])[: cut[1]]
    )
)
def test_any_bytes_are_a_value_or_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(SourceError):
        nested(data)


def test_a_column_that_nobody_reads_may_hold_pickles(tmp_path: Path) -> None:
    index = json.loads((LITDATA / "plain" / "index.json").read_text())
    formats = [("pickle" if form == "float" else form) for form in index["config"]["data_format"]]
    assert "pickle" in formats
    found = read(changed(tmp_path, data_format=formats), keep=("n",))
    assert len(found) == 7
    assert all(isinstance(one, Sample) for one in found)


def test_documents_of_tokens_get_their_end(tmp_path: Path) -> None:
    folder = tokens(tmp_path / "in", "no_header_numpy:5", "<u2", [[1, 2], [3]])
    manifest = ss.pack(folder, tmp_path / "out", format="litdata", eos=9, workers=1)
    assert manifest.tokens == 5
    (block,) = ss.TokenDataset(tmp_path / "out", seq_len=4)
    assert block["tokens"].tolist() == [1, 2, 9, 3, 9]
    with pytest.raises(SourceError, match="do not fit uint16"):
        ss.pack(folder, tmp_path / "other", format="litdata", eos=70_000, workers=1)


@pytest.mark.parametrize("option", [{"key": "n"}, {"column": {"txt": "n"}}, {"text_key": "n"}, {"keep": "n"}])
def test_chunks_of_tokens_have_no_columns(tmp_path: Path, option: dict[str, Any]) -> None:
    folder = tokens(tmp_path / "in", "no_header_numpy:5", "<u2", [[1, 2], [3]])
    with pytest.raises(ss.OptionError, match=f"{next(iter(option))} is for columns"):
        ss.pack(folder, tmp_path / "out", format="litdata", workers=1, **option)


def test_a_column_of_token_ids_gives_documents_and_files_are_no_ids(tmp_path: Path) -> None:
    source = make_source("litdata", SourceOptions(column=(("tokens", "ids"),), dtype="uint16"))
    assert source.prepare(expand([str(ARROW / "plain")])).token_dtype == "uint16"
    with pytest.raises(SourceError, match="no list of token ids that fit uint32"):
        ss.pack(LITDATA / "plain", tmp_path, format="litdata", column={"tokens": "image"}, workers=1)


def test_the_text_of_a_sample_is_read_whatever_is_kept(tmp_path: Path) -> None:
    formats = json.loads((LITDATA / "plain" / "index.json").read_text())["config"]["data_format"]
    pickled = [("pickle" if form == "str" else form) for form in formats]
    with pytest.raises(SourceError, match="column 'text' holds pickles"):
        read(changed(tmp_path, data_format=pickled), keep=("n",), key="none")
