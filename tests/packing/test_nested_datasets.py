"""A dataset in a folder of another one, such as `2024`: neither touches the other's shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import CommitError, SourceError
from shardstream.maintain.rebuild import rebuild
from shardstream.packing import shard_names
from shardstream.packing.destination import Destination
from shardstream.packing.shard_names import clear_temporary, is_shard, shard_files
from shardstream.storage.store import Store
from tests.corpora import digests, lines, sound

SMALL: dict[str, Any] = {"frame_size": "1KiB", "shard_size": "4KiB", "workers": 1}


@pytest.mark.parametrize(("name", "ours"), [
    ("shard-000000.tar", True), ("000/shard-010000.tar.zst", True), ("000/shard-010000.abcdef01.index", True),
    ("shard-010000.tar", True),  # by an earlier version
    ("000/shard-000000.tar", False), ("2024/shard-000000.tar", False), ("001/shard-010000.index", False),
    ("0000/shard-010000.tar", False), ("000/shard-0010000.tar", False),
])  # fmt: skip
def test_a_folder_only_counts_if_it_is_that_of_the_number(name: str, ours: bool) -> None:
    assert is_shard(name) == ours


# An earlier version put all shards into the root: those names are right in the folder of another dataset.
@pytest.fixture(params=["2024", "000", "all in the root"])
def nested(
    request: pytest.FixtureRequest, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A dataset in a folder of `D`, which is not there yet."""
    inner = tmp_path / "D" / ("000" if request.param == "all in the root" else request.param)
    manifest = ss.pack(corpus, inner, **SMALL)
    if request.param == "all in the root":
        monkeypatch.setattr(shard_names, "_IN_FOLDER", 10)
        assert any(is_shard(f"000/{shard.url}") for shard in manifest.shards)
    return inner


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return lines(tmp_path / "few.jsonl", [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}])


def test_a_pack_over_a_dead_one_keeps_it(nested: Path, few: Path) -> None:
    before = digests(nested)
    (nested.parent / ".pack-claim.json").write_text('{"plan": "another"}')
    ss.pack(few, nested.parent, **SMALL)
    assert digests(nested) == before
    assert sound(nested.parent)


def test_a_pack_that_failed_and_is_resumed_keeps_it(nested: Path, tmp_path: Path) -> None:
    before = digests(nested)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "text": "x"}\n{bad\n')
    options = {**SMALL, "on_error": "skip"}
    with pytest.raises(SourceError, match="max_rejects"):
        ss.pack(rows, nested.parent, max_rejects=0.1, **options)
    ss.pack(rows, nested.parent, max_rejects=0.9, resume=True, **options)
    assert digests(nested) == before


def test_parts_and_their_commit_keep_it(few: Path, tmp_path: Path, corpus: Path) -> None:
    outer = tmp_path / "D"
    with ss.Writer(outer, part=(0, 1)) as writer:
        writer.write({"__key__": "a", "txt": "x"})
    for name in ("2024", "000"):
        ss.pack(corpus, outer / name, **SMALL)
    before = [digests(outer / name) for name in ("2024", "000")]
    assert ss.commit(outer).samples == 1
    assert [digests(outer / name) for name in ("2024", "000")] == before


def test_an_append_and_parts_of_an_append_keep_it(nested: Path, few: Path) -> None:
    before = digests(nested)
    outer = nested.parent
    ss.pack(few, outer, **SMALL)
    assert ss.pack(few, outer, append=True, **SMALL).samples == 4
    with ss.Writer(outer, part=(0, 1), append=True) as writer:
        writer.write({"__key__": "a", "txt": "x"})
    assert ss.commit(outer).samples == 5
    store = Store.open(str(outer))
    assert all("/" not in name for name in shard_files(store, store.list()))
    (outer / "manifest.json").unlink()
    assert rebuild(outer).samples == 5
    assert digests(nested) == before


def test_it_may_be_unfinished_while_the_other_is_packed(
    few: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "D" / "000"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Destination, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(corpus, inner, **SMALL)
    (inner / ".tmp-0123").touch()  # of a writer that is alive
    monkeypatch.setattr(shard_names, "_IN_FOLDER", 10)
    before = digests(inner)
    (inner.parent / ".pack-claim.json").write_text('{"plan": "another"}')
    ss.pack(few, inner.parent, **SMALL)
    clear_temporary(Store.open(str(inner.parent)))
    assert digests(inner) == before


def test_shards_are_not_put_into_another_dataset(
    few: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ss.pack(few, tmp_path / "D" / "000", **SMALL)
    before = digests(tmp_path / "D" / "000")
    monkeypatch.setattr(shard_names, "_IN_FOLDER", 10)
    with pytest.raises(CommitError, match="000 is another dataset, and 000/shard-00001"):
        ss.pack(corpus, tmp_path / "D", **SMALL)
    assert digests(tmp_path / "D" / "000") == before
    os.rename(tmp_path / "D" / "000", tmp_path / "moved")
    assert ss.pack(corpus, tmp_path / "D", resume=True, **SMALL).samples == 100
    assert sound(tmp_path / "D")
