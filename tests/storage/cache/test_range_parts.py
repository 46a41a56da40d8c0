"""Blocks that are views of their range: what they hold, what stays in memory with them, and what counts."""

from __future__ import annotations

import itertools
import random
import threading

import pytest

from shardstream.memory import MemoryBudget
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.memory import MemoryTier
from shardstream.storage.cache.range_parts import RangeParts, owned, range_of

SIZE = 64 << 10
DATA = random.Random(0).randbytes(8 * SIZE)
PLACES = [(number * SIZE, SIZE, False) for number in range(8)]


def test_blocks_are_views_of_the_bytes_that_came() -> None:
    parts = RangeParts(MemoryBudget(1 << 30))
    stored = bytearray(DATA)
    found = parts.cut(memoryview(stored), PLACES)
    assert [bytes(part) for part in found] == [DATA[at : at + SIZE] for at, _, _ in PLACES]
    assert all(memoryview(part).readonly for part in found)
    stored[SIZE] ^= 1
    assert found[1][0] == DATA[SIZE] ^ 1
    assert len({range_of(part) for part in found}) == 1
    assert range_of(found[0][10:20]) == range_of(found[0])
    assert range_of(parts.cut(DATA, PLACES)[0]) != range_of(found[0])


def test_what_is_gone_and_still_in_memory_counts_until_the_last_block_is_gone() -> None:
    budget = MemoryBudget(1 << 30)
    parts = RangeParts(budget)
    found = parts.cut(DATA, PLACES)
    for left in range(7, 0, -1):
        del found[0]
        assert (parts.kept, budget.free) == ((8 - left) * SIZE, (1 << 30) - (8 - left) * SIZE)
    inside = found[0][5:6]
    del found[0]
    assert parts.kept == 7 * SIZE  # a view of the last block keeps all
    del inside
    assert parts.kept == 0


def test_many_threads_drop_the_blocks_of_a_range() -> None:
    parts = RangeParts(MemoryBudget(1 << 30))
    for _ in range(50):
        found = parts.cut(DATA, PLACES)
        start = threading.Barrier(4)

        def drop(found: list[object] = found, start: threading.Barrier = start) -> None:
            start.wait(30)
            while found:
                try:
                    found.pop()
                except IndexError:
                    return

        threads = [threading.Thread(target=drop) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert parts.kept == 0


def test_small_blocks_and_blocks_that_are_to_have_their_own_memory_are_copied() -> None:
    parts = RangeParts(MemoryBudget(1 << 30))
    bounds = [0, 100, 100 + SIZE, 100 + 3 * SIZE]
    places = [(begin, end - begin, begin == 100) for begin, end in itertools.pairwise(bounds)]
    found = parts.cut(DATA[: bounds[-1]], places)
    assert [bytes(part) for part in found] == [DATA[at : at + size] for at, size, _ in places]
    assert [range_of(part) is None for part in found] == [True, True, False]
    assert parts.kept == 100 + SIZE  # they are in memory twice, as long as the view is there
    del found[2]
    assert parts.kept == 0


def test_no_range_stays_for_the_lesser_part_of_it() -> None:
    parts = RangeParts(MemoryBudget(1 << 30))
    for own in range(9):
        found = parts.cut(DATA, [(number * SIZE, SIZE, number < own) for number in range(8)])
        views = 8 - own if own <= 4 else 0
        assert sum(range_of(part) is not None for part in found) == views
        assert parts.kept == (own * SIZE if views else 0)
        assert b"".join(found) == DATA
        del found
        assert parts.kept == 0


def test_one_block_is_the_range_itself() -> None:
    parts = RangeParts(MemoryBudget(1 << 30))
    [found] = parts.cut(DATA, [(0, len(DATA), False)])
    assert memoryview(found).obj is DATA
    assert range_of(found) is None
    assert owned(found) is found


def test_blocks_are_copied_while_too_much_that_is_gone_is_in_memory() -> None:
    parts = RangeParts(MemoryBudget(16 * SIZE))  # of which 2 blocks may be gone
    first = parts.cut(DATA, PLACES)
    del first[:2]
    assert range_of(parts.cut(DATA, PLACES)[0]) is not None
    del first[:1]
    assert [range_of(part) for part in parts.cut(DATA, PLACES)] == [None] * 8
    del first
    assert range_of(parts.cut(DATA, PLACES)[0]) is not None


@pytest.mark.parametrize("ranges", [1, 4])
def test_the_ram_tier_copies_what_is_left_of_a_range_when_it_makes_room(ranges: int) -> None:
    budget = MemoryBudget((8 * ranges - 2) * SIZE)
    tier, parts = MemoryTier(budget), RangeParts(budget)
    blocks = [Block(f"{group:032x}", str(number), SIZE) for group in range(ranges) for number in range(8)]
    for group in range(ranges):
        for number, data in enumerate(parts.cut(DATA, PLACES)):
            tier.put(blocks[8 * group + number], data)
    del data
    budget.make_room()
    other = budget.holder("other")
    other.add(budget.free + 1)  # once more, whatever room there is
    assert budget.free >= 0
    assert parts.kept == 0  # nothing is in memory that nobody can ask for
    there = [block for block in blocks if tier.has(block)]
    assert 8 * ranges - 8 <= len(there) <= 8 * ranges - 3
    for block in there:
        data = tier.get(block)
        assert data is not None
        assert bytes(data) == DATA[int(block.name) * SIZE :][:SIZE]
        whole = sum(other.group == block.group for other in there) == 8
        assert (range_of(data) is not None) == whole


def test_the_ram_tier_copies_nothing_while_somebody_else_has_blocks_of_the_range() -> None:
    budget = MemoryBudget(7 * SIZE)
    tier, parts = MemoryTier(budget), RangeParts(budget)
    found = parts.cut(DATA, PLACES)
    for number in range(2):
        tier.put(Block("0" * 32, str(number), SIZE), found[number])
    del found[:3]  # the third is gone; the tier has two
    budget.make_room()
    assert parts.kept == SIZE
    other = budget.holder("other")
    other.add(5 * SIZE)  # too much; but to drop the two would free nothing
    assert tier.used == 2 * SIZE
    data = tier.get(Block("0" * 32, "0", SIZE))
    assert data is not None
    assert range_of(data) is range_of(found[0])
    del data, found
    budget.make_room()
    assert (parts.kept, tier.used) == (0, 2 * SIZE)
    other.add(SIZE)
    assert tier.used == 0


def test_the_ram_tier_copies_blocks_whose_neighbours_were_copied_before() -> None:
    budget = MemoryBudget(9 * SIZE)
    tier, parts = MemoryTier(budget), RangeParts(budget)
    blocks = [Block("0" * 32, str(number), SIZE) for number in range(8)]
    found = parts.cut(DATA, [(number * SIZE, SIZE, number < 2) for number in range(8)])
    for block, data in list(zip(blocks, found, strict=True))[2:]:
        tier.put(block, data)
    del found, data
    assert (tier.used, parts.kept) == (6 * SIZE, 2 * SIZE)
    budget.holder("other").add(3 * SIZE)
    assert (tier.used, parts.kept) == (6 * SIZE, 0)  # nothing was dropped
    assert [tier.get(block) for block in blocks[2:]] == [DATA[at : at + SIZE] for at, _, _ in PLACES[2:]]
    tier.put(blocks[7], DATA[7 * SIZE :])  # once more
    assert tier.used == 6 * SIZE
