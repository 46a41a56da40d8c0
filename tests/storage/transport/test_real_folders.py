"""A store whose folders are real, and which makes none by itself, such as SFTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

import shardstream as ss
from shardstream.errors import CommitError
from shardstream.packing import shard_names
from shardstream.storage.store import Store
from tests.corpora import sound


class Folders(LocalFileSystem):
    protocol = "folders"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("folders://").rstrip("/")


@pytest.fixture(scope="module", autouse=True)
def folders() -> None:
    fsspec.register_implementation("folders", Folders, clobber=True)


@pytest.mark.parametrize("group", [{}, {"shuffle": 1}], ids=["in order", "shuffled"])
def test_a_pack_makes_the_folders_of_its_shards(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: dict[str, Any]
) -> None:
    monkeypatch.setattr(shard_names, "_IN_FOLDER", 3)
    dest = f"folders://{tmp_path}/new/out"
    manifest = ss.pack(corpus, dest, frame_size="1KiB", shard_size="4KiB", workers=1, **group)
    assert manifest.shards[-1].url.startswith("00")
    assert sound(dest)


def test_puts_and_creates_make_a_folder(tmp_path: Path) -> None:
    store = Store.open(f"folders://{tmp_path}/out")
    store.write(".spill/a", b"1")
    store.create("000/b", b"2")
    with pytest.raises(CommitError):
        store.create("000/b", b"3")
    assert (store.read(".spill/a"), store.read("000/b")) == (b"1", b"2")
