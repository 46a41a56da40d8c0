"""How large ranges are: they grow with the epoch, and at once if the link soon brings all."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardstream.memory import MemoryBudget
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.fetch import range_sizes
from shardstream.storage.fetch.progress import EpochProgress
from shardstream.storage.fetch.range_sizes import RangeSizes

MIB = 1 << 20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(range_sizes.time, "monotonic", lambda: now[0])
    return now


def made(budget: int = 1 << 30) -> tuple[RangeSizes, Tiers, EpochProgress]:
    tiers, progress = Tiers(None, budget=MemoryBudget(budget)), EpochProgress()
    return RangeSizes(tiers, progress), tiers, progress


def test_ranges_grow_with_what_was_asked_for() -> None:
    sizes, _, progress = made()
    assert sizes.now == 2 * MIB
    for asked, size in ((32, 2), (32, 4), (64, 8), (128, 16), (1000, 16)):
        progress.add(Block("", "index", 0), asked * MIB)
        assert sizes.now == size * MIB


def test_they_grow_at_once_if_the_link_soon_brings_all(clock: list[float]) -> None:
    sizes, tiers, _ = made(1 << 40)
    tiers.counters.from_store(500 * MIB)  # of an earlier epoch
    clock[0] = 100.0
    sizes.restart(1800 * MIB)
    assert sizes.now == 2 * MIB
    tiers.counters.from_store(32 * MIB)
    clock[0] = 100.5  # 64 MiB a second: all comes in 28 s
    assert sizes.now == 16 * MIB
    clock[0] = 102.0
    assert sizes.now == 2 * MIB
    sizes.restart(100_000 * MIB)
    tiers.counters.from_store(32 * MIB)
    clock[0] = 102.5
    assert sizes.now == 2 * MIB


@pytest.mark.parametrize("disk", [False, True])
def test_they_do_not_grow_at_once_in_a_memory_that_is_too_small_for_all(
    disk: bool, clock: list[float], tmp_path: Path
) -> None:
    tiers = Tiers(None, DiskTier.open(tmp_path, 1 << 30) if disk else None, budget=MemoryBudget(1 << 30))
    sizes = RangeSizes(tiers, EpochProgress())
    sizes.restart(1800 * MIB)
    tiers.counters.from_store(32 * MIB)
    clock[0] = 0.5
    assert sizes.now == (16 if disk else 2) * MIB


@pytest.mark.parametrize(
    ("rate", "size"),
    [(1, 2), (16, 2), (32, 4), (100, 12.5), (200, 16)],
)  # fmt: skip
def test_a_range_takes_no_long_time_on_a_slow_link(clock: list[float], rate: int, size: float) -> None:
    sizes, tiers, progress = made()
    progress.add(Block("", "index", 0), 1000 * MIB)
    sizes.restart(1e12)
    for _ in range(20):  # 64 streams at a time share the link
        clock[0] += 2.0
        tiers.counters.from_store(2 * rate * MIB, 2.0 * 64)
    assert sizes.now == size * MIB


def test_a_link_that_is_not_used_much_is_not_slow(clock: list[float]) -> None:
    sizes, tiers, progress = made()
    progress.add(Block("", "index", 0), 1000 * MIB)
    sizes.restart(1e12)
    for _ in range(20):  # 2 MiB a second are asked for, and come in 0.1 s
        clock[0] += 1.0
        tiers.counters.from_store(2 * MIB, 0.1)
    assert sizes.now == 16 * MIB
    tiers.counters.from_store(1000, 60.0)  # a small one tells nothing
    assert sizes.now == 16 * MIB


def test_ranges_are_a_small_part_of_the_budget() -> None:
    for budget, size in ((1 << 20, 2), (512 << 20, 8), (8 << 30, 16)):
        sizes, _, progress = made(budget)
        progress.add(Block("", "index", 0), 1000 * MIB)
        assert sizes.now == size * MIB
