"""The names of shards: numbers of any length, and folders for very many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import OptionError
from shardstream.format.manifest import FieldInfo, Manifest, ShardInfo
from shardstream.maintain.export import FORMATS, export
from shardstream.maintain.rebuild import rebuild
from shardstream.packing import shard_names
from shardstream.packing.build_manifest import next_number
from shardstream.packing.destination import Destination
from shardstream.packing.shard_names import is_shard, shard_files, shard_stem, task_shard
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Store
from tests.corpora import digests, is_clean, lines, sound

SMALL: dict[str, Any] = {"frame_size": "1KiB", "shard_size": "4KiB", "workers": 1}


@pytest.mark.parametrize(("number", "place", "stem"), [
    (0, 0, "shard-000000"), (7, 1, "shard-000007-1"), (9_999, 0, "shard-009999"),
    (10_000, 0, "000/shard-010000"), (19_999, 2, "000/shard-019999-2"), (20_000, 0, "001/shard-020000"),
    (3, 12_345, "000/shard-000003-12345"), (999_999, 0, "098/shard-999999"),
    (1_000_000, 0, "099/shard-1000000"), (10_010_000, 0, "1000/shard-10010000"),
])  # fmt: skip
def test_a_name_says_its_number_and_every_folder_has_ten_thousand(number: int, place: int, stem: str) -> None:
    assert shard_stem(number, place) == stem
    for suffix in ("tar", "tar.zst", "index"):
        assert is_shard(f"{stem}.{suffix}")
        assert task_shard(f"{stem}.{suffix}") == number
    for other in (f"{stem}.tar.gz", f"x/{stem}.tar", f"00/{stem}.tar", f"{stem}.tar.zst.bak"):
        assert task_shard(other) is None


def shard(number: int) -> ShardInfo:
    stem = shard_stem(number)
    return ShardInfo(
        f"{stem}.tar.zst", "zstd", ("txt",), 1, 1, 1, 0, 1, "0" * 32, f"{stem}.index", 1, "0" * 32
    )


@pytest.mark.parametrize("numbers", [[0], [9_999], [0, 10_000], [0, 999_999, 1_000_000, 1_000_001]])
def test_an_append_begins_behind_the_last_number(numbers: list[int]) -> None:
    fields = (FieldInfo("txt", "txt"),)
    manifest = Manifest.build("samples", fields, tuple(map(shard, numbers)), {})
    manifest.check("here")
    assert next_number(manifest) == numbers[-1] + 1
    assert next_number(None) == 0


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders from the fourth number on, with three numbers each."""
    monkeypatch.setattr(shard_names, "_IN_FOLDER", 3)


def keys(dest: object) -> list[str]:
    return [key for key, _ in DatasetReader.open(str(dest)).iter_samples()]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_dataset_with_folders_is_read_and_maintained_like_any_other(
    corpus: Path, tmp_path: Path, where: str
) -> None:
    dest = str(tmp_path / "out") if where == "local" else f"memory://{tmp_path.name}/out"
    manifest = ss.pack(corpus, dest, **SMALL)
    urls = [each.url for each in manifest.shards]
    assert urls == [f"{shard_stem(task_shard(url) or 0)}.tar.zst" for url in urls]
    assert len({os.path.dirname(url) for url in urls}) > 3
    assert sound(dest)
    store = Store.open(dest)
    assert len(list(shard_files(store, store.list()))) == 2 * len(urls)

    natural = keys(dest)
    assert len(natural) == 100
    cache = ss.Cache(str(tmp_path / "cache"), always=True)
    for _ in range(2):
        ds = ss.StreamingDataset(dest, cache=cache, shuffle=True)
        assert sorted(sample["__key__"] for sample in ds) == natural
    ss.warm(dest, cache)
    for name in FORMATS:
        export(dest, tmp_path / name, format=name)

    store.delete("manifest.json")
    rebuilt = rebuild(dest)
    assert rebuilt.shards == manifest.shards
    more = lines(tmp_path / "more.jsonl", [{"id": f"new{n}", "text": "x"} for n in range(5)])
    both = ss.pack(more, dest, append=True, **SMALL)
    assert both.shards[len(urls)].url == f"{shard_stem((task_shard(urls[-1]) or 0) + 1)}.tar.zst"
    assert keys(dest) == [*natural, *keys(dest)[100:]]
    assert sound(dest)


def test_a_dataset_that_grows_keeps_the_names_it_has(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "out"
    first = ss.pack(corpus, dest, **SMALL)  # as by an earlier version: all in the root
    assert all("/" not in each.url for each in first.shards)
    before = digests(dest)
    monkeypatch.setattr(shard_names, "_IN_FOLDER", 3)
    both = ss.pack(corpus, dest, append=True, **SMALL)
    assert both.shards[: len(first.shards)] == first.shards
    assert all("/" in each.url for each in both.shards[len(first.shards) :])
    after = digests(dest)
    assert all(after[name] == digest for name, digest in before.items() if name != "manifest.json")
    assert sound(dest)
    (dest / "manifest.json").unlink()
    assert rebuild(dest).shards == both.shards


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("shuffle", [None, 3])
def test_an_unfinished_pack_in_folders_goes_on_or_is_cleared(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: int | None
) -> None:
    dest = tmp_path / "out"
    whole = ss.pack(corpus, tmp_path / "whole", shuffle=shuffle, **SMALL)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Destination, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(corpus, dest, shuffle=shuffle, **SMALL)
    made = {path: path.stat().st_ino for path in dest.glob("0*/shard-*")}
    (next(dest.glob("0*/")) / ".tmp-0123").touch()
    assert ss.pack(corpus, dest, shuffle=shuffle, resume=True, **SMALL).shards == whole.shards
    assert {path: path.stat().st_ino for path in dest.glob("0*/shard-*")} == made
    assert is_clean(dest)

    # Shards of no dataset are not overwritten; those of an unfinished pack are deleted by the next one.
    (dest / "manifest.json").unlink()
    for name in os.listdir(dest):
        if name.startswith("shard-"):
            (dest / name).unlink()
    with pytest.raises(OptionError, match=r"holds 0\d\d/shard-"):
        ss.pack(corpus, dest, **SMALL)
    (dest / ".pack-claim.json").write_text('{"plan": "another"}')
    few = lines(tmp_path / "few.jsonl", [{"id": "a", "text": "x"}])
    ss.pack(few, dest, **SMALL)
    assert not list(dest.glob("0*/*"))


@pytest.mark.usefixtures("few")
def test_parts_in_folders_are_committed_and_stale_shards_deleted(tmp_path: Path) -> None:
    dest = tmp_path / "out"
    for count in (300, 40):  # the second time there are fewer shards
        for rank in range(2):
            with ss.Writer(dest, part=(rank, 2), shard_size="1KiB") as writer:
                for number in range(count):
                    writer.write({"__key__": f"{rank}-{number}", "txt": "x" * 100})
    manifest = ss.commit(dest)
    assert manifest.shards[-1].url == "000/shard-000001-3.tar.zst"
    assert sound(dest)
    store = Store.open(str(dest))
    listed = {url for each in manifest.shards for url in (each.url, each.index_url)}
    assert set(shard_files(store, store.list())) == listed


@pytest.mark.usefixtures("few")
def test_archives_that_are_adopted_have_indexes_in_folders(tmp_path: Path, corpus: Path) -> None:
    ss.pack(corpus, tmp_path / "out", compression="none", **SMALL)
    tars = sorted(map(str, tmp_path.glob("out/**/*.tar")))
    (tmp_path / "adopted" / "000").mkdir(parents=True)
    (tmp_path / "adopted" / "000" / ".tmp-0123").touch()  # of a worker that was killed
    manifest = ss.index(tars, tmp_path / "adopted", workers=1)
    assert not list(tmp_path.glob("adopted/**/.tmp-*"))
    assert manifest.shards[-1].index_url.startswith("00")
    assert sound(tmp_path / "adopted")


@pytest.mark.long
def test_twelve_thousand_shards(tmp_path: Path) -> None:
    rows = lines(tmp_path / "rows.jsonl", [{"id": f"{n:05d}", "text": "x" * 10} for n in range(12_000)])
    size = rows.stat().st_size // 12_000
    manifest = ss.pack(rows, tmp_path / "out", frame_size=size, shard_size=size)
    assert len(manifest.shards) > 10_000
    assert len(list(tmp_path.glob("out/shard-*"))) == 20_000
    assert sound(tmp_path / "out")
    assert keys(tmp_path / "out") == [f"{n:05d}" for n in range(12_000)]
