"""Reads of more than one call of the system gives: above 2 GiB, and where a call gives less than asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardstream.errors import StorageError
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.entries import SEAL, Entries
from shardstream.storage.inputs import read_slice
from shardstream.storage.local import reads
from shardstream.storage.local.reads import read_at
from shardstream.storage.store import Store

GIB = 1 << 30
ENDS = b"here it ends"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system whose calls give at most 7 bytes, as some network file systems give less than asked."""
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(reads.os, "pread", lambda file, size, at: pread(file, min(size, 7), at))
    monkeypatch.setattr(reads.os, "preadv", lambda file, views, at: preadv(file, [views[0][:7]], at))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("start", "size"), [(0, 100), (3, 50), (0, 7), (0, 8), (0, 0), (90, 10), (90, 99), (200, 5)]
)
def test_short_calls_are_made_again(tmp_path: Path, start: int, size: int) -> None:
    path, data = tmp_path / "x", os.urandom(100)
    path.write_bytes(data)
    with path.open("rb") as file:
        found = read_at(file.fileno(), start, size)
    assert found == data[start : start + size]
    assert memoryview(found).readonly
    assert read_slice(str(path), start, size) == data[start : start + size]


@pytest.mark.usefixtures("short")
def test_a_file_that_is_cut_meanwhile_gives_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    before = os.preadv

    def cutting(file: int, views: Any, at: int) -> int:
        os.truncate(path, 20)
        return before(file, views, at)

    monkeypatch.setattr(reads.os, "preadv", cutting)
    with path.open("rb") as file:
        assert read_at(file.fileno(), 0, 100) == bytes(20)
    path.write_bytes(bytes(100))
    with pytest.raises(StorageError, match="it ends at byte 20, not at 100"):
        Store.open(str(tmp_path)).read_range("x", 0, 100)


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[Path]:
    """A sparse file, a bit larger than what one call of Linux reads."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(2 * GIB + 4096)
        file.seek(-len(ENDS), os.SEEK_END)
        file.write(ENDS)
    yield path
    path.unlink()


@pytest.mark.long
@pytest.mark.parametrize("way", ["slice", "store", "block"])
def test_more_than_two_gibibytes_come_whole(huge: Path, tmp_path: Path, way: str) -> None:
    size = huge.stat().st_size
    if way == "slice":
        found = memoryview(read_slice(str(huge), 0, size))
    elif way == "store":
        found = memoryview(Store.open(str(tmp_path)).read_range("huge", 0, size))
    else:
        files, block = Entries(str(tmp_path / "cache")), Block("0" * 32, "whole", size - SEAL.size)
        place = tmp_path / "cache" / "blocks" / block.group
        place.mkdir(0o700)
        os.link(huge, place / block.name)
        found = files.read(block)
    assert len(found) == size
    assert found[-len(ENDS) :] == ENDS


@pytest.mark.long
def test_a_part_above_four_gibibytes_comes_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(5 * GIB)
        file.seek(-len(ENDS), os.SEEK_END)
        file.write(ENDS)
    found = memoryview(read_slice(str(path), 5 * GIB // 2, 5 * GIB // 2))
    path.unlink()
    assert len(found) == 5 * GIB // 2
    assert found[-len(ENDS) :] == ENDS
