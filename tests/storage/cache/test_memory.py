"""The RAM tier: what is needed soonest stays, as far as the other holders of the budget leave room."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shardstream.memory import MemoryBudget
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.memory import MemoryTier

GROUP = "ab" * 16
SIZE = 1000


def block(number: int) -> Block:
    return Block(GROUP, str(number), SIZE)


def filled(tier: MemoryTier, count: int) -> None:
    """In random order."""
    order = list(range(count))
    random.Random(0).shuffle(order)
    for number in order:
        tier.put(block(number), bytes(SIZE))
        assert tier.used <= tier.limit


def numbers_in(tier: MemoryTier) -> list[int]:
    return [number for number in range(64) if tier.has(block(number))]


def test_the_blocks_that_are_needed_soonest_stay() -> None:
    tier = MemoryTier(MemoryBudget(20 * SIZE))
    tier.next_uses.set(tier, lambda group: np.arange(64.0))
    filled(tier, 64)
    assert numbers_in(tier)[:18] == list(range(18))
    assert tier.get(block(0)) == bytes(SIZE)
    assert tier.get(block(63)) is None


def test_it_gives_up_the_blocks_that_are_needed_latest_when_others_need_the_room() -> None:
    budget = MemoryBudget(20 * SIZE)
    tier, other = MemoryTier(budget), budget.holder("other")
    tier.next_uses.set(tier, lambda group: np.arange(64.0))
    filled(tier, 20)
    other.add(5 * SIZE)
    # One block in 16 more goes, so that the next call does not follow at once.
    assert numbers_in(tier) == list(range(13))
    assert budget.by_name() == {"RAM tier": 13 * SIZE, "other": 5 * SIZE}
    other.add(100 * SIZE)
    assert (numbers_in(tier), tier.used) == ([], 0)
    tier.put(block(1), bytes(SIZE))
    assert numbers_in(tier) == []
    other.add(-90 * SIZE)
    tier.put(block(1), bytes(SIZE))
    assert numbers_in(tier) == [1]


def test_a_block_that_is_larger_than_the_room_drops_no_others() -> None:
    tier = MemoryTier(MemoryBudget(4 * SIZE))
    filled(tier, 3)
    tier.put(Block(GROUP, "9", 5 * SIZE), bytes(5 * SIZE))
    assert numbers_in(tier) == [0, 1, 2]


def test_a_reader_that_is_asked_may_need_room_itself() -> None:
    budget = MemoryBudget(20 * SIZE)
    tier, other = MemoryTier(budget), budget.holder("other")
    asked = threading.Event()

    def known(group: str) -> np.ndarray:
        asked.set()
        other.add(SIZE)  # an order that it makes for the answer, say
        return np.arange(64.0)

    tier.next_uses.set(tier, known)
    filled(tier, 20)
    assert not asked.is_set()
    other.add(SIZE)
    assert asked.is_set()
    assert budget.free >= 0


def test_many_threads_end_within_the_limit() -> None:
    budget = MemoryBudget(20 * SIZE)
    tier, other = MemoryTier(budget), budget.holder("other")

    def work(begin: int) -> None:
        for number in range(begin, begin + 200):
            tier.put(block(number % 64), bytes(SIZE))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(0, 64, 8)))
    assert tier.used == len(numbers_in(tier)) * SIZE <= tier.limit
    other.add(10 * SIZE)
    assert tier.used == len(numbers_in(tier)) * SIZE <= 10 * SIZE
