"""Mistakes that people make, each answered with what to do, and whole numbers of numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardstream as ss
from shardstream.decode import images
from shardstream.errors import OptionError, ShardstreamError, StorageError
from shardstream.integrations.position import after
from tests.corpora import pack_rows


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = ({"id": number, "text": f"row {number}"} for number in range(20))
    return pack_rows(tmp_path_factory.mktemp("mistakes"), rows)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("num_workers", "threads="),
        ("drop_last", "last='pad'"),
        ("collate_fn", "collate="),
        ("pin_memory", "pin=True"),
        ("prefetch_factor", "prefetch="),
        ("shuffle", "StreamingDataset"),
        ("sampler", "subset"),
        ("transform", "to the dataset"),
        ("thread", "threads=?"),
        ("zzz", "it has batch_size, last"),
    ],
)
def test_names_from_other_loaders(packed: Path, option: str, told: str) -> None:
    with pytest.raises(OptionError, match=told) as caught:
        ss.StreamingLoader(ss.StreamingDataset(packed), 4, **{option: True})  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)
    assert f"no argument '{option}'" in str(caught.value)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("batch_size", "StreamingLoader"),
        ("local", "cache="),
        ("shuffle_seed", "Shuffle"),
        ("world_size", "topology="),
        ("transfrom", "transform=?"),
    ],
)
def test_names_from_other_datasets(packed: Path, option: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        ss.StreamingDataset(packed, **{option: 1})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=told):
        ss.TokenDataset(packed, 8, **{option: 1})  # type: ignore[arg-type]


def test_the_weights_of_a_mixture(packed: Path) -> None:
    with pytest.raises(OptionError, match="pairs"):
        ss.Mixture([ss.StreamingDataset(packed)], weights=[1.0])  # type: ignore[list-item, arg-type]


def test_what_is_no_number_of_a_sample(packed: Path) -> None:
    ds = ss.StreamingDataset(packed)
    for item, told in (
        (slice(1, 3), r"subset\(numbers=range\(1, 3, 1\)\)"),
        (slice(None, -15), r"range\(0, 5, 1\)"),
        ("3", r"subset\(keys=\['3'\]\)"),
        (1.5, "from 0 to 19, not 1.5"),
        (None, "from 0 to 19"),
        ([1, 2], "from 0 to 19"),
        (True, "from 0 to 19"),
    ):
        with pytest.raises(OptionError, match=told):
            ds[item]
    for number in (20, -21, np.int64(20)):
        with pytest.raises(IndexError, match="which has 20"):
            ds[number]
    assert ds[np.int64(3)] == ds[-17] == ds[np.uint8(3)]
    with pytest.raises(OptionError, match="one of its datasets"):
        ss.Mixture({ds: 1})[0]


def test_a_predicate_over_a_field_that_there_is_not(packed: Path) -> None:
    ds = ss.StreamingDataset(packed)
    for where in (lambda c: c.size["text"] > 0, lambda c: c.has["text"]):
        with pytest.raises(OptionError, match=r"'text'; the dataset has .*'txt'"):
            ds.subset(where=where)


@pytest.mark.parametrize("url", ["s3://bucket/cache", "file:///nvme/cache", "s3://key:hidden@host/cache"])
def test_a_cache_that_is_no_local_folder(packed: Path, url: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for make in (lambda: ss.Cache(url), lambda: ss.StreamingDataset(packed, cache=url)):
        with pytest.raises(OptionError, match="local disk") as caught:
            make()
        assert "hidden" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_a_gpu_that_there_is_not(packed: Path, device: Any) -> None:
    with pytest.raises(OptionError, match="needs a GPU"):
        ss.StreamingLoader(ss.StreamingDataset(packed), 4, device=device)


def test_what_is_no_dataset_yet(packed: Path, tmp_path: Path) -> None:
    folder, tars, empty = tmp_path / "photos", tmp_path / "tars", tmp_path / "empty"
    for one in (folder, tars, empty):
        one.mkdir()
    for name in ("a.jsonl", "a.parquet", "a.tar", "photos/a.jpg", "tars/a.tar"):
        (tmp_path / name).write_bytes(b"x")
    for url, told in (
        (tmp_path / "a.jsonl", f"pack it first: shardstream pack {tmp_path}/a.jsonl DEST"),
        (f"file://{tmp_path}/a.parquet", "pack it first: shardstream pack"),
        (tmp_path / "a.tar", f"shardstream index {tmp_path}/a.tar DEST"),
        (folder, f"shardstream pack {folder} DEST"),
        (tars, "shardstream index"),
        (empty, "manifest.json is missing"),
        (tmp_path / "nothing", "no such file or folder"),
        (packed / "manifest.json", f"give the folder that it is in: {packed}"),
        (next(packed.glob("*.index")), f"give the folder that it is in: {packed}"),
        ("memory://bucket/a.jsonl", "pack it first: shardstream pack memory://bucket/a.jsonl"),
    ):
        with pytest.raises(StorageError) as caught:
            ss.StreamingDataset(url)
        assert told in str(caught.value)


def test_whole_numbers_of_numpy_are_welcome(packed: Path, tmp_path: Path) -> None:
    n = np.int64
    ranks = ss.Topology(n(0), n(2))
    ds = ss.StreamingDataset(packed, shuffle=ss.Shuffle(seed=n(3), lanes=n(2), window=n(2)), topology=ranks)
    plain = ss.StreamingDataset(
        packed, shuffle=ss.Shuffle(seed=3, lanes=2, window=2), topology=ss.Topology(0, 2)
    )
    loaders = [
        ss.StreamingLoader(ds, n(4), threads=n(2), prefetch=n(1 << 20), last="pad"),
        ss.StreamingLoader(plain, 4, last="pad"),
    ]
    loaders[0].set_epoch(n(2))
    loaders[1].set_epoch(2)
    assert [batch["__key__"] for batch in loaders[0]] == [batch["__key__"] for batch in loaders[1]]
    assert json.dumps(loaders[0].state_dict()) == json.dumps(loaders[1].state_dict())
    assert after(loaders[0], loaders[0].state_dict(), n(1)) == after(loaders[1], loaders[1].state_dict(), 1)
    assert ss.Topology.from_sizes(n(3), n(8), tp=n(2)) == ss.Topology.from_sizes(3, 8, tp=2)
    assert images.Train(n(32), seed=n(5)) == images.Train(32, seed=5)
    assert type(images.Train(n(32), seed=n(5)).seed) is int
    tokens = pack_rows(tmp_path, [{"text": "some words " * 20}] * 3, tokenizer="bytes", eos=n(256))
    blocks = ss.TokenDataset(tokens, n(8), pad_id=n(0), tail="pad")
    assert type(blocks.state_dict()["seq_len"]) is type(blocks.pad_id) is int
    json.dumps(blocks.state_dict())


@pytest.mark.parametrize("value", [0, -1, 1.0, "4", None, True, np.float64(4), np.bool_(True)])
def test_what_is_no_whole_number_is_refused(packed: Path, value: Any) -> None:
    with pytest.raises(OptionError, match=r"batch_size=.* must be an int, at least 1"):
        ss.StreamingLoader(ss.StreamingDataset(packed), value)
    assert issubclass(OptionError, ShardstreamError)
