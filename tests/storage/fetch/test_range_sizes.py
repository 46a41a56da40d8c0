"""How large ranges are: they grow with the epoch, and at once if the link soon brings all."""

from __future__ import annotations

import pytest

from shardstream.memory import MemoryBudget
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.fetch import range_sizes
from shardstream.storage.fetch.progress import EpochProgress
from shardstream.storage.fetch.range_sizes import THREADS, RangeSizes

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
    sizes, tiers, _ = made()
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


def test_few_large_ranges_are_on_their_way_at_once() -> None:
    sizes, _, progress = made()
    assert sizes.at_once() == THREADS
    progress.add(Block("", "index", 0), 1000 * MIB)
    assert sizes.at_once() == 16
    sizes.limit = lambda: 4  # the store objects
    assert sizes.at_once() == 4


def test_ranges_are_a_small_part_of_the_budget() -> None:
    for budget, size in ((1 << 20, 2), (512 << 20, 8), (8 << 30, 16)):
        sizes, _, progress = made(budget)
        progress.add(Block("", "index", 0), 1000 * MIB)
        assert sizes.now == size * MIB
