"""Shards beyond number 999,999, and sizes of which the user gives one."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.errors import OptionError
from shardstream.packing import layout as layout_module
from shardstream.packing import passes
from shardstream.packing.destination import Destination
from shardstream.packing.layout import Layout, fitting_shard_size
from shardstream.packing.planning import expected_bytes
from shardstream.packing.shard_names import shard_stem
from shardstream.storage.inputs import FileInfo
from tests.corpora import digests, is_clean, lines, sound, texts

ROWS = [{"id": f"k{n}", "text": f"text {n}"} for n in range(8)]


@pytest.fixture
def million(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset whose one shard has the number 999,999."""
    with monkeypatch.context() as patch:
        patch.setattr(passes, "next_number", lambda old: 999_999)
        ss.pack(lines(tmp_path / "a.jsonl", ROWS[:2]), tmp_path / "out", workers=1)
    return tmp_path / "out"


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_appends_go_on_behind_a_million_shards(million: Path, tmp_path: Path) -> None:
    for first in (2, 4, 6):
        before = digests(million)
        ss.pack(lines(tmp_path / f"{first}.jsonl", ROWS[first : first + 2]), million, workers=1, append=True)
        after = digests(million)
        assert all(after[name] == before[name] for name in before if name != "manifest.json")
    names = [shard.url for shard in ss.pack(tmp_path / "2.jsonl", million, workers=1, append=True).shards]
    assert names == [f"{shard_stem(number)}.tar.zst" for number in range(999_999, 1_000_004)]
    assert texts(million) == [(row["id"], row["text"]) for row in [*ROWS, *ROWS[2:4]]]
    assert sound(million)
    assert is_clean(million)


@pytest.mark.parametrize("resume", [False, True])
def test_what_an_unfinished_append_left_behind_a_million_shards(
    million: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    more = lines(tmp_path / "more.jsonl", ROWS[2:])
    options = {"frame_size": 8, "shard_size": 8, "workers": 1, "append": True}
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "commit", _killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(more, million, **options)
    left = {name for _, _, names in os.walk(million) for name in names if name.startswith("shard-1")}
    assert len(left) > 6
    if not resume:  # another pack: the shards of the unfinished one go
        more = lines(tmp_path / "more.jsonl", ROWS[2:3])
    ss.pack(more, million, resume=resume, **options)
    assert is_clean(million)
    assert len(texts(million)) == (8 if resume else 3)
    assert sound(million)


def test_shards_beyond_a_million_of_no_dataset_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-1000000.tar").write_bytes(b"precious")
    with pytest.raises(OptionError, match=r"shard-1000000\.tar but no dataset"):
        ss.pack(lines(tmp_path / "a.jsonl", ROWS), tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "shard-1000000.tar").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("frame_size", "shard_size", "made"),
    [
        (None, None, (1 << 20, 64 << 20)),
        (None, "256KiB", (256 << 10, 256 << 10)),
        (None, 1, (1, 1)),
        (None, "2GiB", (1 << 20, 2 << 30)),
        ("128MiB", None, (128 << 20, 128 << 20)),
        ("4KiB", None, (4 << 10, 64 << 20)),
        ("4KiB", "8KiB", (4 << 10, 8 << 10)),
    ],
)
def test_a_default_follows_the_size_that_was_given(
    frame_size: str | None, shard_size: str | int | None, made: tuple[int, int]
) -> None:
    layout = Layout.of_sizes(frame_size, shard_size)
    assert (layout.frame_size, layout.shard_size) == made


@pytest.mark.parametrize(
    ("frame_size", "shard_size"), [("2MiB", "1MiB"), ("1025MiB", None), ("0", None), (None, "1 parsec")]
)
def test_sizes_that_cannot_work_are_refused(frame_size: str | None, shard_size: str | None) -> None:
    with pytest.raises(OptionError, match="_size="):
        Layout.of_sizes(frame_size, shard_size)


def test_a_small_shard_size_alone_packs(corpus: Path, tmp_path: Path) -> None:
    manifest = ss.pack(corpus, tmp_path / "out", workers=1, shard_size="8KiB")
    assert len(manifest.shards) > 2
    assert manifest.provenance["options"]["frame_size"] == 8 << 10
    assert sound(tmp_path / "out")


@pytest.mark.parametrize(
    ("size", "frame", "made"),
    [
        (0, 1 << 20, 64 << 20),
        (49_999 * (64 << 20), 1 << 20, 64 << 20),
        (49_999 * (64 << 20) + 1, 1 << 20, 128 << 20),
        (100 * 10**12, 1 << 20, 2 << 30),
        (10**18, 1 << 20, 2 << 30),
        (0, 65 << 20, 128 << 20),
        (0, 1 << 30, 1 << 30),
    ],
)
def test_shards_are_as_large_as_the_input_needs(size: int, frame: int, made: int) -> None:
    assert fitting_shard_size(size, frame) == made


def test_the_size_of_shards_may_follow_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = lines(tmp_path / "a.jsonl", ROWS)
    monkeypatch.setattr(layout_module, "TOO_MANY_SHARDS", 2)
    monkeypatch.setattr(layout_module, "_SMALLEST", 16)
    size = 16
    while size < rows.stat().st_size:
        size *= 2
    plan = ss.pack(rows, tmp_path / "out", shard_size="auto", frame_size=1, dry_run=True)
    assert plan.shard_size == size
    manifest = ss.pack(rows, tmp_path / "out", shard_size="auto", frame_size=1, workers=1)
    assert manifest.provenance["options"]["shard_size"] == size
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(rows.read_bytes()))
    assert expected_bytes([FileInfo(str(packed), 10, ""), FileInfo(str(rows), 10, "")]) == 50
    for sources in (iter([{"txt": "a"}]), [dict]):
        with pytest.raises(OptionError, match="needs files"):
            ss.pack(sources, tmp_path / "other", shard_size="auto")
    with pytest.raises(OptionError, match="needs files"):
        ss.Writer(tmp_path / "other", shard_size="auto")
