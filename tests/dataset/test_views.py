"""decode="view": the bytes of samples without a copy, which stay valid as long as somebody has them."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardstream as ss
from shardstream.decode.modes import frozen
from shardstream.errors import CorruptionError, OptionError

COUNT = 60


def content(number: int) -> bytes:
    return bytes([number, 255 - number]) * (2000 + 37 * number)


@pytest.fixture(params=["none", "zstd"])
def url(request: pytest.FixtureRequest, tmp_path) -> str:
    rows = ({"__key__": f"{n:03d}", "bin": content(n), "txt": str(n)} for n in range(COUNT))
    ss.pack(rows, tmp_path / "ds", compression=request.param, frame_size=1 << 15, shard_size=1 << 19)
    return str(tmp_path / "ds")


def number_of(sample) -> int:
    return int(sample["__key__"])


def test_views_stay_valid_after_the_iteration(url: str) -> None:
    ds = ss.StreamingDataset(url, shuffle=True, decode={"bin": "view"})
    kept = {number_of(sample): sample for sample in ds}
    del ds
    gc.collect()
    # Another iteration would use the memory of frames again.
    assert sum(1 for _ in ss.StreamingDataset(url, shuffle=True, decode="view")) == COUNT
    assert sorted(kept) == list(range(COUNT))
    for number, sample in kept.items():
        assert type(sample["bin"]) is memoryview
        assert sample["bin"].readonly
        assert sample["bin"] == content(number)
        assert sample["txt"] == str(number)


def test_batches_hold_lists_of_views_in_the_same_order(url: str) -> None:
    def batches(decode):
        ds = ss.StreamingDataset(url, shuffle=ss.Shuffle(seed=3), decode=decode)
        return list(ss.StreamingLoader(ds, 8, last="pad"))

    plain, views = batches(False), batches("view")
    assert [batch["__key__"] for batch in views] == [batch["__key__"] for batch in plain]
    for mine, other in zip(views, plain, strict=True):
        assert all(type(view) is memoryview for view in mine["bin"])
        assert mine["bin"] == list(other["bin"])
        assert mine["txt"] == list(other["txt"])
        assert other["bin"].views() == mine["bin"] == [other["bin"].view(row) for row in range(8)]


def test_views_of_a_file_are_the_file_itself(tmp_path) -> None:
    ss.pack(
        ({"__key__": str(n), "bin": bytes(1 << 20)} for n in range(8)), tmp_path / "ds", compression="none"
    )
    before = _private()
    kept = list(ss.StreamingDataset(str(tmp_path / "ds"), decode="view"))
    assert sum(len(sample["bin"]) for sample in kept) == 8 << 20
    assert _private() - before < 4 << 20


def _private() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private_Dirty"))


def test_an_item_and_a_missing_field(tmp_path) -> None:
    rows = [{"__key__": "a", "bin": b"x"}, {"__key__": "b", "txt": "y"}]
    ss.pack(rows, tmp_path / "ds")
    ds = ss.StreamingDataset(str(tmp_path / "ds"), decode="view")
    assert ds[0]["bin"] == b"x"
    assert "bin" not in ds[1]
    assert [sorted(sample) for sample in ds] == [["__key__", "bin"], ["__key__", "txt"]]
    (batch,) = ss.StreamingLoader(ds, 2)
    assert batch["bin"] == [b"x", None]
    assert batch["txt"] == [None, b"y"]


def test_damage_is_found_before_a_view_is_given(tmp_path) -> None:
    ss.pack(({"__key__": str(n), "bin": content(n)} for n in range(8)), tmp_path / "ds", compression="none")
    (shard,) = (tmp_path / "ds").glob("*.tar")
    with shard.open("r+b") as file:
        file.seek(os.path.getsize(shard) // 2)
        found = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([found[0] ^ 1]))
    with pytest.raises(CorruptionError):
        list(ss.StreamingDataset(str(tmp_path / "ds"), decode="view"))


def test_views_in_a_mixture_and_after_a_transform(url: str) -> None:
    one = ss.StreamingDataset(url, shuffle=True, decode="view")
    other = ss.StreamingDataset(url, shuffle=True, decode={"bin": "view"}, transform=lambda sample: sample)
    kept = list(ss.Mixture([(one, 1), (other, 1)], stop="first"))
    assert len(kept) > COUNT
    assert all(sample["bin"] == content(number_of(sample)) for sample in kept)


class Passing(torch.utils.data.IterableDataset):
    """What users put around a dataset."""

    def __init__(self, ds: ss.StreamingDataset) -> None:
        self.ds = ds

    def __iter__(self):
        for sample in self.ds:
            yield {"nested": (sample["bin"], len(sample["bin"]))}


class Items(torch.utils.data.Dataset):
    """Samples by number."""

    def __init__(self, ds: ss.StreamingDataset) -> None:
        self.ds = ds

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int):
        return self.ds[number]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_gets_bytes(url: str, workers: int) -> None:
    ds = ss.StreamingDataset(url, decode={"bin": "view"})
    wanted = [content(number) for number in range(8)]
    (batch, *_) = DataLoader(ds, 8, num_workers=workers, timeout=20 * workers)
    assert batch["bin"] == wanted
    assert batch["txt"] == [str(number) for number in range(8)]
    mixed = ss.Mixture([(ds, 1), (ss.StreamingDataset(url, decode="view"), 1)], stop="first")
    (batch, *_) = DataLoader(mixed, 8, num_workers=workers, timeout=20 * workers, collate_fn=list)
    assert all(type(sample["bin"]) is bytes for sample in batch)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_gets_bytes_through_what_is_around_a_dataset(tmp_path, workers: int) -> None:
    ss.pack(({"__key__": f"{n:03d}", "bin": content(n)} for n in range(COUNT)), tmp_path / "ds")
    ds = ss.StreamingDataset(str(tmp_path / "ds"), decode="view")
    wanted = [content(number) for number in range(8)]
    (batch, *_) = DataLoader(Passing(ds), 8, num_workers=workers, timeout=20 * workers)
    assert list(batch["nested"][0]) == wanted
    (batch, *_) = DataLoader(Items(ds), 8, num_workers=workers, timeout=20 * workers)
    assert batch["bin"] == wanted
    # Beside it the views are still views.
    assert type(ds[0]["bin"]) is type(next(iter(ds))["bin"]) is memoryview


class Batches(torch.utils.data.IterableDataset):
    """A loader in a worker."""

    def __init__(self, ds: ss.StreamingDataset) -> None:
        self.ds = ds

    def __iter__(self):
        return iter(ss.StreamingLoader(self.ds, 8))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_loader_in_a_worker_refuses_views(tmp_path) -> None:
    ss.pack(({"__key__": f"{n:03d}", "bin": content(n)} for n in range(8)), tmp_path / "ds")
    ds = ss.StreamingDataset(str(tmp_path / "ds"), decode="view")
    with pytest.raises(OptionError, match="a worker of a DataLoader"):
        next(iter(DataLoader(Batches(ds), None, num_workers=1, timeout=20)))


def test_what_is_no_mode_is_an_option_error() -> None:
    for wrong in (np.zeros(2), np.array("view"), ["view"], {"bin": np.zeros(2)}, None, "nope"):
        with pytest.raises(OptionError, match="decode="):
            frozen(wrong)  # type: ignore[arg-type]


def test_other_processes_cannot_get_views(url: str) -> None:
    ds = ss.StreamingDataset(url, decode={"txt": "view"})
    with pytest.raises(OptionError, match="decode='view'"):
        ss.StreamingLoader(ds, 8, engine="process")
    mixed = ss.Mixture([(ds, 1), (ss.StreamingDataset(url), 1)])
    with pytest.raises(OptionError, match="decode='view'"):
        ss.StreamingLoader(mixed, 8, engine="process")
    with pytest.raises(OptionError, match="'view'"):
        ss.StreamingDataset(url, decode={"bin": "views"})  # type: ignore[dict-item]
