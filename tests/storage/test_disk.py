"""The SSD tier: what was put comes back, or is absent."""

from __future__ import annotations

import logging
import shutil

import pytest

from shardstream.storage.block_files import cost
from shardstream.storage.disk import Disk
from tests.storage.disks import block, put


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 300_000])
@pytest.mark.parametrize("mapped", [False, True])
def test_what_was_put_comes_back(disk: Disk, size: int, mapped: bool) -> None:
    one, data = block(1, size)
    assert disk.get(one) is None
    put(disk, (one, data))
    assert disk.has(one)
    assert disk.get(one, mapped) == data
    assert disk.used == cost(size)
    assert disk.info(check=True).damaged == []


def test_a_directory_that_vanishes_is_one_warning(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    put(disk, block(1))
    shutil.rmtree(disk.path)
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            put(disk, block(number))
            assert disk.get(block(number)[0]) is None
    assert [record.name for record in caplog.records] == ["shardstream.cache"]


def test_clearing_leaves_an_empty_cache_that_works(disk: Disk) -> None:
    put(disk, *(block(number) for number in range(5)))
    assert disk.clear().blocks == 5
    assert (disk.used, disk.info().blocks, disk.info().groups) == (0, 0, 0)
    put(disk, block(7))
    assert disk.get(block(7)[0]) == block(7)[1]
