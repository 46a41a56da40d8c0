"""Block files: exact or absent, and safe against damage and other users."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardstream.errors import StorageError
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.disk import DiskTier
from tests.storage.disks import GROUP, block, file_of, put


def test_directories_and_files_are_for_their_owner_alone(disk: DiskTier) -> None:
    put(disk, block(1))
    for path in [Path(disk.path), *Path(disk.path).rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_threads_that_list_at_once_all_see_all(disk: DiskTier) -> None:
    put(disk, *map(block, range(20)))

    def look(_: int) -> tuple[int, int, int]:
        info = disk.info()
        return info.blocks, info.processes, disk.room(0)

    expected = look(0)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(look, range(2000))) == {expected}


@pytest.mark.parametrize("where", [0, 50, 99, 100, 107])
def test_a_flipped_bit_drops_the_block(disk: DiskTier, where: int) -> None:
    one, data = block(1)
    put(disk, (one, data))
    path = file_of(disk, one)
    damaged = bytearray(path.read_bytes())
    damaged[where] ^= 1
    path.write_bytes(damaged)
    assert disk.info(check=True).damaged == [f"{GROUP}/1"]
    assert disk.get(one) is None
    assert not path.exists()
    assert disk.used == 0
    put(disk, (one, data))
    assert disk.get(one) == data


def test_a_block_in_the_place_of_another_is_not_taken_for_it(disk: DiskTier) -> None:
    pairs = [block(1), block(2)]
    put(disk, *pairs)
    os.replace(file_of(disk, pairs[0][0]), file_of(disk, pairs[1][0]))
    assert disk.get(pairs[1][0]) is None


@pytest.mark.parametrize("size", [0, 7, 99, 109])
def test_a_block_of_the_wrong_length_is_dropped(disk: DiskTier, size: int) -> None:
    one, data = block(1)
    put(disk, (one, data))
    file_of(disk, one).write_bytes((data + bytes(9))[:size])
    assert disk.get(one) is None
    assert not file_of(disk, one).exists()
    assert disk.used == 0


def test_other_files_are_neither_read_nor_deleted(disk: DiskTier, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [block(number) for number in range(4)]
    put(disk, *pairs)
    folder = Path(disk.path, "blocks", GROUP)
    outside = Path(disk.path).parent / "precious"
    outside.write_bytes((folder / "0").read_bytes())
    (folder / "0").unlink()
    (folder / "0").symlink_to(outside)
    os.chown(folder / "1", 12345, 12345)
    (folder / "2").unlink()
    os.mkfifo(folder / "2")
    (folder / "notes.txt").write_text("mine")
    Path(disk.path, "blocks", "f" * 32).symlink_to(folder)
    with caplog.at_level(logging.WARNING):
        for one, _ in pairs[:3]:
            assert disk.get(one) is None
        assert disk.get(Block("f" * 32, "3", 100)) is None
    assert len(caplog.records) == 1
    assert disk.get(pairs[3][0]) == pairs[3][1]
    assert disk.info().foreign == 5
    assert disk.clear().blocks == 1
    assert outside.exists()
    assert {path.name for path in folder.iterdir()} == {"0", "1", "2", "notes.txt"}


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    planted = Path(DiskTier.path_in(str(tmp_path)))
    planted.mkdir(mode=0o700)
    os.chown(planted, 12345, 12345)
    with pytest.raises(StorageError, match="somebody else"):
        DiskTier.open(tmp_path)
    planted.rmdir()
    planted.symlink_to("/tmp")
    with pytest.raises(StorageError, match="no cache here"):
        DiskTier.open(tmp_path)
    planted.unlink()
    planted.mkdir(mode=0o777)
    planted.chmod(0o777)
    with pytest.raises(StorageError, match="others have access"):
        DiskTier.open(tmp_path)
