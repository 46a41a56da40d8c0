"""Datasets of Hugging Face in memory, by stand-ins of their classes; test_moving.py has the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import OptionError, SourceError
from shardstream.packing.hf_rows import _undecoded, is_hf_dataset

JPEG = b"\xff\xd8\xff\xe0 and so on"


class Value:
    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class ClassLabel(Value):
    pass


class Image:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class List:
    def __init__(self, feature: Any) -> None:
        self.feature = feature


class Dataset:
    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any] | None) -> None:
        self.rows, self.features = rows, features
        self.column_names = list(rows[0]) if features else None
        self.format = {"type": None, "columns": self.column_names, "output_all_columns": False}

    def with_format(self, kind: str | None, columns: list[str] | None = None) -> Dataset:
        made = Dataset(self.rows, self.features)
        made.format |= {"type": kind, "columns": columns or self.column_names}
        return made

    def select_columns(self, names: list[str]) -> Dataset:
        rows = [{name: row[name] for name in names} for row in self.rows]
        return Dataset(rows, {name: (self.features or {})[name] for name in names})

    def cast_column(self, name: str, feature: Image) -> Dataset:
        return Dataset(self.rows, {**(self.features or {}), name: feature})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        decoded = [name for name, kind in (self.features or {}).items() if getattr(kind, "decode", False)]
        return iter([{**row, **dict.fromkeys(decoded, object())} for row in self.rows])


class DatasetDict(dict[str, Dataset]):
    pass


for stand_in in (Dataset, DatasetDict):
    stand_in.__module__ = "datasets.stand_in"

FEATURES = {"id": Value("string"), "text": Value("string"), "label": ClassLabel("int64"), "picture": Image()}
ROWS = [
    {"id": f"a.{n}", "text": f"text {n}", "label": n, "picture": {"bytes": JPEG, "path": None}}
    for n in range(4)
]


@pytest.mark.parametrize("features", [FEATURES, None], ids=["features", "none"])
def test_rows_become_what_a_saved_folder_would_give(tmp_path: Path, features: dict[str, Any] | None) -> None:
    ss.pack(Dataset(ROWS, features), tmp_path / "out", workers=1)
    found = list(ss.StreamingDataset(tmp_path / "out", decode={"jpg": False}))
    assert [sample["__key__"] for sample in found] == [f"a%2E{n}" for n in range(4)]
    assert found[2]["txt"] == "text 2"
    assert found[2]["json"] == {"id": "a.2", "label": 2}
    assert bytes(found[2]["jpg"]) == JPEG


def test_options_of_rows(tmp_path: Path) -> None:
    data = Dataset(ROWS, FEATURES)
    ss.pack(
        data, tmp_path / "out", column={"txt": "text", "cls": "label"}, key="none", keep=["label"], workers=1
    )
    chosen = ss.StreamingDataset(tmp_path / "out").subset(where=lambda c: c["label"] > 1)
    assert [(sample["txt"], sample["cls"]) for sample in chosen] == [("text 2", 2), ("text 3", 3)]
    ss.pack(data, tmp_path / "tokens", tokenizer="bytes", eos=256, workers=1)
    assert ss.TokenDataset(tmp_path / "tokens", seq_len=8).manifest.tokens == 4 * 7
    with pytest.raises(SourceError, match="there is no column 'caption'"):
        ss.pack(data, tmp_path / "none", column={"txt": "caption"})
    with pytest.raises(OptionError, match="labels is for files"):
        ss.pack(data, tmp_path / "none", labels="leaf")


def test_bad_rows_are_left_out(tmp_path: Path) -> None:
    rows = [ROWS[0], {**ROWS[1], "picture": None}, ROWS[2]]
    with pytest.raises(SourceError, match=r"row 1: field .* has no value"):
        ss.pack(Dataset(rows, FEATURES), tmp_path / "raise", workers=1)
    assert ss.pack(Dataset(rows, FEATURES), tmp_path / "skip", on_error="skip", workers=1).samples == 2


def test_columns_that_are_fields_already(tmp_path: Path) -> None:
    rows = [{"__key__": "a", "txt": "x", "cls": 1}]
    kinds = {"__key__": Value("string"), "txt": Value("string"), "cls": Value("int64")}
    ss.pack(Dataset(rows, kinds), tmp_path / "out", workers=1)
    assert next(iter(ss.StreamingDataset(tmp_path / "out")))["cls"] == 1


def test_a_dict_of_splits_says_what_to_do(tmp_path: Path) -> None:
    splits = DatasetDict(train=Dataset(ROWS, FEATURES), test=Dataset(ROWS, FEATURES))
    with pytest.raises(OptionError, match=r"'train', 'test': pack each .* ss.pack\(splits\['train'\]"):
        ss.pack(splits, tmp_path / "out")  # type: ignore[call-overload]


def test_token_ids_and_columns_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ss.OptionError, match=r"Writer\(dest, tokens=True\)"):
        ss.pack(Dataset(ROWS, FEATURES), tmp_path / "a", column={"tokens": "ids"})  # type: ignore[call-overload]
    rows = [{"text": "a", "image": None}, {"text": "b", "image": b"\x89PNG"}]
    with pytest.raises(ss.OptionError, match="no value of 'image'"):
        ss.pack(Dataset(rows, {}), tmp_path / "b")  # type: ignore[call-overload]


def test_a_format_hides_columns_and_a_transform_is_refused(tmp_path: Path) -> None:
    data = Dataset(ROWS, FEATURES)
    ss.pack(data.with_format("numpy", ["text", "label"]), tmp_path / "some", workers=1)
    first = next(iter(ss.StreamingDataset(tmp_path / "some")))
    assert set(first) == {"__key__", "txt", "json"}
    assert first["json"] == {"label": 0}
    with pytest.raises(OptionError, match="the dataset has a transform"):
        ss.pack(data.with_format("custom"), tmp_path / "none", workers=1)


def test_fields_of_samples_are_known_by_the_first_row() -> None:
    assert not is_hf_dataset(Dataset([{"__key__": "a", "txt": "x"}], None))
    assert is_hf_dataset(Dataset(ROWS, None))
    assert is_hf_dataset(Dataset([], None))


def test_media_within_lists_and_objects_are_not_decoded() -> None:
    feature = {"many": List(Image()), "old": [Image()], "one": {"image": Image(), "n": Value("int64")}}
    features = {"text": Value("string"), **feature}
    rows = [dict.fromkeys(features, "x")]
    casted, kinds = _undecoded(Dataset(rows, features))
    assert kinds == {"text": "text", "many": "other", "old": "other", "one": "other"}
    made = casted.features
    assert [made["many"].feature.decode, made["old"][0].decode, made["one"]["image"].decode] == [False] * 3
    assert features["many"].feature.decode, "the features of the dataset itself have changed"
