"""Caches under damage in numbers: flipped bits, planted files, a directory that goes away under its readers.

Bits in shards and indexes are flipped in test_mutations.py, several thousand times.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import CorruptionError
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.disk import DiskTier
from tests.faults.cached import FrameId, blocks_in, digest, frames_of, read_all, small, url_of

FLIPS = [100, pytest.param(1000, marks=pytest.mark.long)]


@pytest.mark.parametrize("flips", FLIPS)
def test_bits_on_the_wire(proxy: Any, digests: dict[FrameId, str], tmp_path: Path, flips: int) -> None:
    proxy.faults.only = lambda method, path: method == "GET" and "shard-" in path
    repaired = number = 0
    while proxy.counts.injected["flip"] < flips:
        number += 1
        # Without a cache every frame is a request of its own; with one, they come in ranges.
        reader = DatasetReader.open(
            url_of(proxy), cache=small(tmp_path / f"{number}") if number % 2 else None
        )
        order = frames_of(reader)
        random.Random(number).shuffle(order)
        proxy.faults.flip = 0.3
        reader.fetch_indexes_ahead([shard for shard, _ in order])
        for begin in range(0, len(order), 8):
            with contextlib.suppress(CorruptionError):  # of an index, twice in a row
                reader.ahead.fetch(order[begin : begin + 8])
            for frame in order[begin : begin + 8]:
                try:
                    assert digest(reader, frame) == digests[frame]
                except CorruptionError as error:
                    assert f"shard-{frame[0]:06d}" in str(error)  # noqa: PT017
        repaired += reader.counters["refetches"]
        proxy.faults.flip = 0.0
        assert {frame: digest(reader, frame) for frame in order} == digests
    assert repaired > flips // 3


@pytest.mark.parametrize("flips", FLIPS)
def test_bits_in_cache_files(proxy: Any, digests: dict[FrameId, str], tmp_path: Path, flips: int) -> None:
    cache, numbers, done = small(tmp_path), random.Random(2), 0
    read_all(url_of(proxy), cache)
    disk = DiskTier.open(tmp_path)
    while done < flips:
        damaged = numbers.sample(blocks_in(tmp_path), 50)
        for path in damaged:
            data = bytearray(path.read_bytes())
            data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
            path.write_bytes(data)
        done += len(damaged)
        found, counters = read_all(url_of(proxy), cache, done)
        assert found == digests
        assert counters["refetches"] == len(damaged)
    assert disk.info(check=True).damaged == []


def plant(cache: Path, precious: Path) -> int:
    """What another user might leave in a cache; returns how many blocks are then not ours any more."""
    blocks = blocks_in(cache)
    whole = blocks[0].parent
    for number, path in enumerate(blocks[8:40]):
        if path.parent == whole:
            continue
        if number % 4 == 0:
            os.chown(path, 12345, 12345)
            continue
        path.unlink()
        if number % 4 == 1:
            path.symlink_to(precious)
        elif number % 4 == 2:
            os.mkfifo(path)
        else:
            path.mkdir()
    # A folder of blocks that is a link to another one, with other bytes of the right names.
    shutil.rmtree(whole)
    whole.symlink_to(blocks[-1].parent)
    for folder in cache.iterdir():
        for name in ("partial", "ledgers", "blocks"):
            (folder / name / "0-1").symlink_to(precious)
            (folder / name / "notes.txt").write_text("somebody's")
    return len(blocks) - len(blocks_in(cache))


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user")
def test_planted_files_and_links_are_left_alone(
    proxy: Any, digests: dict[FrameId, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, precious = tmp_path / "cache", tmp_path / "precious"
    read_all(url_of(proxy), small(cache))
    precious.write_bytes(b"not to be touched" * 1000)
    before = precious.stat()
    plant(cache, precious)
    planted = {path: os.lstat(path) for path in cache.rglob("*") if not path.is_file() or path.is_symlink()}
    with caplog.at_level(logging.WARNING, "shardstream.cache"):
        for epoch in range(2):
            assert read_all(url_of(proxy), small(cache), epoch)[0] == digests
    assert len([record for record in caplog.records if "did not make" in record.getMessage()]) <= 2
    assert caplog.records
    after = precious.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (
        before.st_mtime_ns,
        before.st_size,
        before.st_ino,
    )
    DiskTier.open(cache).clear()
    assert precious.exists()
    assert all(os.lstat(path).st_ino == found.st_ino for path, found in planted.items() if path.is_symlink())


def test_a_directory_deleted_under_a_loader_again_and_again(proxy: Any, packed: Path, tmp_path: Path) -> None:
    def keys(url: str, **options: Any) -> list[str]:
        ds = ss.StreamingDataset(url, shuffle=ss.Shuffle(seed=3), decode=False, **options)
        loader = ss.StreamingLoader(ds, batch_size=8, last="short")
        return [key for _ in range(3) for batch in loader for key in batch["__key__"]]

    stop = threading.Event()

    def delete() -> None:
        while not stop.wait(0.03):
            for path in tmp_path.iterdir():
                shutil.rmtree(path, ignore_errors=True)

    deleting = threading.Thread(target=delete)
    deleting.start()
    try:
        assert keys(url_of(proxy), cache=small(tmp_path)) == keys(str(packed))
    finally:
        stop.set()
        deleting.join()


@pytest.mark.parametrize("share", [0.4, pytest.param(None, marks=pytest.mark.long)])
def test_a_disk_that_fills_up_at_some_point(
    proxy: Any, digests: dict[FrameId, str], tmp_path: Path, share: float | None
) -> None:
    """The file system is full after so many bytes of what the cache would take; 20 points in the long run."""
    read_all(url_of(proxy), small(tmp_path / "whole"))
    size = sum(path.stat().st_blocks * 512 for path in blocks_in(tmp_path / "whole"))
    for part in [share] if share is not None else [number / 20 for number in range(20)]:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        kilobytes = max(64, int(size * part) >> 10)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], check=True)
        try:
            for epoch in range(2):
                assert read_all(url_of(proxy), small(folder, disk="1GB"), epoch)[0] == digests
            assert DiskTier.open(folder).info(check=True).damaged == []
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
