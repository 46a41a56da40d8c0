"""Packs into stores that let a second writer of an object have its way: names carry the plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import shardstream as ss
from shardstream.packing import reservation
from shardstream.packing.destination import Destination
from shardstream.storage.local_store import LocalStore
from shardstream.storage.store import Store

SMALL: dict[str, Any] = {"workers": 1, "frame_size": "4KiB", "shard_size": "8KiB"}


class Plain(MemoryFileSystem):
    """A file system whose puts take no condition, like most of fsspec's."""

    protocol = "plainmemory"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes) -> None:
        super().pipe_file(path, value)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("plainmemory://").strip("/")


@pytest.fixture(scope="module", autouse=True)
def plain() -> None:
    fsspec.register_implementation("plainmemory", Plain, clobber=True)


def names(store: Store) -> set[str]:
    return {name for name in store.list() if name.startswith("shard-")}


def test_plans_never_share_a_name(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dests = "plainmemory://one/out", "plainmemory://two/out"
    found = [ss.pack(corpus, dest, level=level, **SMALL) for level, dest in enumerate(dests, 1)]
    first, second = (names(Store.open(dest)) for dest in dests)
    assert all(re.fullmatch(r"shard-\d{6}\.[0-9a-f]{8}\.(tar\.zst|index)", name) for name in first)
    assert len(first) == len(second) == 2 * len(found[0].shards) > 4
    assert not first & second
    assert ss.verify(dests[0], deep=True).sound
    more = ss.pack(corpus, dests[0], append=True, **SMALL)
    assert more.samples == 2 * found[0].samples
    numbers = [shard.url[:12] for shard in more.shards]
    assert numbers == sorted(set(numbers))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    dest = "plainmemory://three/out"
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(corpus, dest, level=1, **SMALL)
    assert ss.pack(corpus, dest, level=1, resume=True, **SMALL).shards == found[0].shards
    assert names(Store.open(dest)) == first


class Careless(LocalStore):
    """A store that ignores that an object must not exist yet, and that is not on this machine."""

    def create(self, path: str, *parts: Any) -> str:
        self.write(path, *parts)
        return self.version(path)[0]

    def local_path(self, path: str) -> Any:
        return None


def test_a_server_that_ignores_conditions_is_found_out(tmp_path: Path) -> None:
    mine = reservation.Reservation("plan")
    granted, _ = reservation.reserve(Careless(str(tmp_path / "careless")), mine, False, locked=False)
    assert granted.tagged
    assert reservation.read(Store.open(str(tmp_path / "careless"))) == granted
    granted, _ = reservation.reserve(Store.open(str(tmp_path / "good")), mine, False, locked=False)
    assert not granted.tagged
