"""Samples that lack a field in torch's DataLoader, and padding where a batch is no dict."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

import shardstream as ss
from shardstream.errors import OptionError
from tests.corpora import pack_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 samples; every third lacks "txt", every other has "cls"."""
    folder = tmp_path_factory.mktemp("gaps")
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(20):
            members = {"json": b'{"n": %d}' % number, "cls": b"%d" % number, "txt": b"t%d" % number}
            if number % 3 == 0:
                del members["txt"]
            if number % 2:
                del members["cls"]
            for name, data in members.items():
                info = tarfile.TarInfo(f"{number:03}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    ss.index([str(folder / "a.tar")], str(folder / "index"))
    return folder / "index"


def more(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "more": 1}


TEXTS = [None if number % 3 == 0 else f"t{number}" for number in range(20)]


@pytest.mark.parametrize("transform", [None, more])
@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_field_is_none_in_the_batches_of_torch(
    gaps: Path, workers: int, loader: Any, transform: Any
) -> None:
    ds = ss.StreamingDataset(gaps, transform=transform)
    batches = list(loader(ds, batch_size=4, num_workers=workers))
    assert [text for batch in batches for text in batch["txt"]] == TEXTS
    assert batches[0]["cls"] == [0, None, 2, None]
    assert torch.equal(batches[1]["json"]["n"], torch.arange(4, 8))  # what torch makes of a dict, as ever
    assert type(batches[0]) is dict
    if transform is not None:
        assert batches[0]["more"].tolist() == [1] * 4


def test_a_mixture_with_missing_fields(gaps: Path) -> None:
    mix = ss.Mixture([(ss.StreamingDataset(gaps), 1), (ss.StreamingDataset(gaps, fields=["json"]), 1)])
    batch = next(iter(DataLoader(mix, batch_size=8)))
    assert (
        batch["__source__"].tolist() == [0, 1] * 4
        or sorted(batch["__source__"].tolist()) == [0] * 4 + [1] * 4
    )
    assert len(batch["txt"]) == 8


def test_a_field_that_no_sample_lacks_is_what_it_was(gaps: Path) -> None:
    ds = ss.StreamingDataset(gaps, fields=["json"])
    for batch, samples in zip(DataLoader(ds, batch_size=5), zip(*[iter(ds)] * 5, strict=True), strict=True):
        wanted = default_collate(list(samples))
        assert batch["__key__"] == wanted["__key__"]
        assert torch.equal(batch["json"]["n"], wanted["json"]["n"])


def test_single_samples_stay_plain_dicts_without_the_field(gaps: Path) -> None:
    ds = ss.StreamingDataset(gaps)
    seen: list[Any] = []

    def mine(samples: list[Any]) -> int:
        seen.extend(samples)
        return len(samples)

    assert sum(DataLoader(ds, batch_size=4, collate_fn=mine)) == 20
    for samples in (
        list(ds),
        [ds[number] for number in range(20)],
        seen,
        list(DataLoader(ds, batch_size=None)),
    ):
        assert all(type(sample) is dict for sample in samples)
        assert [sample.get("txt", None) for sample in samples] == TEXTS
        assert ["txt" in sample for sample in samples] == [text is not None for text in TEXTS]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = ({"id": number, "text": f"row {number}"} for number in range(20))
    return pack_rows(tmp_path_factory.mktemp("padded"), rows)


def as_tuple(samples: list[dict[str, Any]]) -> tuple[list[str], list[bool]]:
    return [sample["__key__"] for sample in samples], [sample["__pad__"] for sample in samples]


def only_keys(samples: list[Any]) -> list[str]:
    return [sample["__key__"] for sample in samples]


def key_of(sample: dict[str, Any]) -> str:
    return str(sample["__key__"])


def as_dict(samples: list[str]) -> dict[str, Any]:
    return {"keys": samples}


def loader(url: Path, collate: Any, last: str = "pad", rank: int = 0, size: int = 1, **options: Any) -> Any:
    topology = ss.Topology(rank, size)
    transform = options.pop("transform", None)
    ds = ss.StreamingDataset(url, shuffle=ss.Shuffle(seed=1), topology=topology, transform=transform)
    return ss.StreamingLoader(ds, 8, last=last, collate=collate, **options)


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_the_samples_of_a_list_say_which_pad(packed: Path, engine: str) -> None:
    batches = list(loader(packed, list, engine=engine))
    assert [sample["__pad__"] for batch in batches for sample in batch] == [False] * 20 + [True] * 4
    real = [sample["__key__"] for batch in batches for sample in batch if not sample["__pad__"]]
    assert len(set(real)) == 20


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_a_collate_of_ones_own_is_told_which_pad(packed: Path, engine: str) -> None:
    keys, padding = map(list, zip(*loader(packed, as_tuple, engine=engine), strict=True))
    assert padding == [[False] * 8] * 2 + [[False] * 4 + [True] * 4]
    assert keys[2][4:] == keys[0][:4]


@pytest.mark.parametrize("last", ["pad", "short"])
@pytest.mark.parametrize("size", [1, 3])
def test_of_all_ranks_from_anywhere_each_sample_is_marked_once(packed: Path, last: str, size: int) -> None:
    for position in (0, 5, 19):
        real = []
        for rank in range(size):
            one = loader(packed, as_tuple, last, rank, size)
            one.load_state_dict(one.state_dict() | {"position": position})
            batches = list(one)
            real += [
                key for keys, padding in batches for key, pad in zip(keys, padding, strict=True) if not pad
            ]
            # As the batches that are dicts are marked.
            two = loader(packed, None, last, rank, size)
            two.load_state_dict(two.state_dict() | {"position": position})
            assert [padding for _, padding in batches] == [batch["__pad__"].tolist() for batch in two]
        assert len(set(real)) == len(real) == 20 - position


def test_blocks_and_mixtures_are_marked(packed: Path, tmp_path: Path) -> None:
    url = pack_rows(tmp_path, [{"text": "some words " * 20}] * 3, tokenizer="bytes")
    blocks = ss.TokenDataset(url, 16)
    for ds in (blocks, ss.Mixture({blocks: 1}), ss.Mixture({ss.StreamingDataset(packed): 1})):
        made = list(ss.StreamingLoader(ds, 7, last="pad", collate=list))
        flags = [sample["__pad__"] for batch in made for sample in batch]
        assert flags == [number >= ds.total for number in range(-(-ds.total // 7) * 7)]


def test_padding_that_nothing_could_say_is_refused_at_the_first_batch(packed: Path) -> None:
    for collate in (list, tuple, lambda keys: torch.zeros(len(keys))):
        with pytest.raises(OptionError, match="__pad__"):
            next(iter(loader(packed, collate, transform=key_of)))
    one = loader(packed, list, "short", 1, 3, transform=key_of)
    assert sum(map(len, one)) == 7  # each rank has samples, so that none pads
    one.load_state_dict(one.state_dict() | {"epoch": 0, "position": 19})
    with pytest.raises(OptionError, match="__pad__"):
        next(iter(one))
    # A dict has a place; and there may be nothing to be said.
    assert list(loader(packed, as_dict, transform=key_of))[2]["__pad__"].tolist() == [False] * 4 + [True] * 4
    assert sum(map(len, loader(packed, list, "short", transform=key_of))) == 20
    assert sum(map(len, loader(packed, list, "drop", transform=key_of))) == 16


def test_without_padding_there_is_no_mark(packed: Path) -> None:
    for batch in loader(packed, list, "drop"):
        assert all("__pad__" not in sample for sample in batch)
    assert np.concatenate(list(loader(packed, only_keys, "short"))).tolist() == [
        sample["__key__"] for sample in loader(packed, None).ds
    ]


def test_a_sample_that_a_transform_keeps_is_not_changed(packed: Path) -> None:
    kept: dict[str, dict[str, Any]] = {}
    batches = list(loader(packed, list, transform=lambda sample: kept.setdefault(sample["__key__"], sample)))
    assert not any("__pad__" in sample for sample in kept.values())
    assert [sample["__pad__"] for sample in batches[0]] == [False] * 8


def test_an_error_of_a_collate_names_the_samples_as_they_were(gaps: Path) -> None:
    def emptying(samples: list[Any]) -> Any:
        for sample in samples:
            sample.clear()
        samples.clear()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        next(iter(ss.StreamingLoader(ss.StreamingDataset(gaps), 4, collate=emptying)))
    (said,) = [line for line in caught.value.__notes__ if "collate" in line]
    assert said.startswith("in the collate of 4 items, samples '000' to '003', of ")
