"""The SSD tier: what was put comes back, or is absent."""

from __future__ import annotations

import logging
import shutil

import pytest

from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.cache.entries import cost
from tests.storage.disks import block, put


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 300_000])
@pytest.mark.parametrize("mapped", [False, True])
def test_what_was_put_comes_back(disk: DiskTier, size: int, mapped: bool) -> None:
    one, data = block(1, size)
    assert disk.get(one) is None
    put(disk, (one, data))
    assert disk.has(one)
    assert disk.get(one, mapped) == data
    assert disk.used == cost(size)
    assert disk.info(check=True).damaged == []


def test_a_directory_that_vanishes_is_one_warning(disk: DiskTier, caplog: pytest.LogCaptureFixture) -> None:
    put(disk, block(1))
    shutil.rmtree(disk.path)
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            put(disk, block(number))
            assert disk.get(block(number)[0]) is None
    assert [record.name for record in caplog.records] == ["shardstream.cache"]


def test_clearing_leaves_an_empty_cache_that_works(disk: DiskTier) -> None:
    put(disk, *(block(number) for number in range(5)))
    assert disk.clear().blocks == 5
    assert (disk.used, disk.info().blocks, disk.info().groups) == (0, 0, 0)
    put(disk, block(7))
    assert disk.get(block(7)[0]) == block(7)[1]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_write_that_fails_in_any_way_stops_no_later_one(
    disk: DiskTier, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """As where a reader cannot say when a block is needed next, while room is made for another one."""

    def uses(group: str) -> None:
        raise error

    owner = DiskTier
    disk.limit = 11 * cost(100)
    put(disk, *(block(number) for number in range(3)))
    disk.next_uses.set(owner, uses)
    for number in range(3, 9):
        put(disk, block(number))
    [record] = caplog.records
    assert record.exc_info[0] is error
    disk.next_uses.set(owner, lambda group: None)
    for number in range(9, 30):  # some are passed over after a failure
        put(disk, block(number))
    assert any(disk.has(block(number)[0]) for number in range(9, 30))
    assert disk.used == disk.info().bytes <= disk.limit
