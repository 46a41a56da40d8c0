"""The limit is what the directory takes on the disk, as `du` counts it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.disk import DiskTier
from tests.storage.disks import FLUSH

LIMIT = 2 << 20


def taken(folder: Path) -> int:
    """What `du` says."""
    return sum(path.lstat().st_blocks * 512 for path in [folder, *folder.rglob("*")])


@pytest.mark.parametrize(("groups", "frames"), [(1, 2000), (40, 30), (1500, 1)])
def test_what_du_counts_stays_within_the_limit(tmp_path: Path, groups: int, frames: int) -> None:
    disk, numbers = DiskTier.open(tmp_path / "cache", LIMIT), random.Random(0)
    most = 0
    for number in range(groups * frames):
        group, frame = divmod(number, frames)
        data = numbers.randbytes(numbers.choice([100, 5000]))
        disk.put(Block(f"{group:032x}", str(frame), len(data)), data, wait=FLUSH)
        if number % 50 == 0:
            assert disk.flush(FLUSH)
            most = max(most, taken(Path(disk.path)))
    assert disk.flush(FLUSH)
    assert LIMIT * 3 // 4 < taken(Path(disk.path)) <= max(most, taken(Path(disk.path))) <= LIMIT
    assert disk.clear().blocks > 50
    assert disk.used == 0


def test_a_limit_that_folders_fill_keeps_nothing(tmp_path: Path) -> None:
    disk = DiskTier.open(tmp_path, 3 * 4096)
    assert not disk.put(Block("0" * 32, "1", 10), bytes(10))
    assert disk.get(Block("0" * 32, "1", 10)) is None
