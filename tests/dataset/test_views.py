"""decode="view": the bytes of samples without a copy, which stay valid as long as somebody has them."""

from __future__ import annotations

import gc
import os

import pytest

import shardstream as ss
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


def test_other_processes_cannot_get_views(url: str) -> None:
    ds = ss.StreamingDataset(url, decode={"txt": "view"})
    with pytest.raises(OptionError, match="decode='view'"):
        ss.StreamingLoader(ds, 8, engine="process")
    mixed = ss.Mixture([(ds, 1), (ss.StreamingDataset(url), 1)])
    with pytest.raises(OptionError, match="decode='view'"):
        ss.StreamingLoader(mixed, 8, engine="process")
    with pytest.raises(OptionError, match="'view'"):
        ss.StreamingDataset(url, decode={"bin": "views"})  # type: ignore[dict-item]
