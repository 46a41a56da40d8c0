"""Blocks fetched ahead: counted in the budget; the ones that are needed soon are never refused."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shardstream.memory import MemoryBudget
from shardstream.storage.cache import write_behind
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.cache.entries import Entries
from shardstream.storage.cache.memory import MemoryTier
from shardstream.storage.cache.range_parts import range_of
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.fetch import cached, range_sizes
from shardstream.storage.fetch.ahead import FetchedAhead
from shardstream.storage.fetch.cached import CachedStore
from shardstream.storage.fetch.checked import CheckedStore
from shardstream.storage.fetch.fetcher import Fetcher
from shardstream.storage.fetch.in_flight import BlockRequest
from shardstream.storage.transport.backends import Data
from tests.distributed import launch
from tests.storage.fetch.stores import GROUP, SIZE, SlowStore, quiet

NONE = {"RAM tier": 0, "write-behind": 0, "fetched ahead": 0, "parts of ranges": 0}


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


def numbers(ahead: FetchedAhead) -> list[int]:
    return [number for number in range(64) if Block(GROUP, str(number), SIZE) in ahead]


def spare(request: BlockRequest) -> BlockRequest:
    return request._replace(soon=False)


def test_a_tiny_budget_refuses_nothing_that_is_needed_soon(store: SlowStore) -> None:
    tiers = Tiers(MemoryTier(MemoryBudget(1)))
    fetcher = Fetcher(store.load, tiers)
    fetcher.ahead([store.request(number) for number in range(30)])
    quiet()
    assert tiers.budget.by_name() == NONE | {"fetched ahead": 30 * SIZE}
    assert fetcher.room == 0
    for number in range(30):
        assert fetcher.get(store.request(number)) == store.part(number)
    assert tiers.budget.by_name()["fetched ahead"] == 0
    assert max(store.times.values()) == 1


def test_a_block_is_in_one_place_at_a_time(store: SlowStore) -> None:
    tiers = Tiers(MemoryTier(MemoryBudget(100 * SIZE)))
    fetcher = Fetcher(store.load, tiers)
    fetcher.ahead([store.request(number) for number in range(10)])
    quiet()
    assert tiers.budget.by_name() == NONE | {"fetched ahead": 10 * SIZE}
    assert all(fetcher.has(store.request(number).block) for number in range(10))
    for number in range(4):
        fetcher.get(store.request(number))
    assert tiers.budget.by_name() == NONE | {"RAM tier": 4 * SIZE, "fetched ahead": 6 * SIZE}
    assert all(fetcher.has(store.request(number).block) for number in range(10))


def test_the_ram_tier_makes_room_for_blocks_that_come(store: SlowStore) -> None:
    memory = MemoryTier(MemoryBudget(16 * SIZE))
    tiers = Tiers(memory)
    tiers.set_next_uses(store, lambda group: np.arange(64.0))
    fetcher = Fetcher(store.load, tiers)
    for number in range(16):
        fetcher.get(store.request(number))
    assert memory.used == 16 * SIZE
    fetcher.ahead([store.request(number) for number in range(40, 44)])
    quiet()
    assert tiers.budget.by_name()["fetched ahead"] == 4 * SIZE
    assert memory.used <= 12 * SIZE
    assert all(memory.has(store.request(number).block) for number in range(8))


def test_blocks_that_are_needed_later_count_from_when_they_are_sent_for(store: SlowStore) -> None:
    answers, tiers = threading.Event(), Tiers(None, budget=MemoryBudget(100 * SIZE))

    def load(url: str, start: int, size: int) -> bytes:
        assert answers.wait(90)
        return store.load(url, start, size)

    fetcher = Fetcher(load, tiers)
    fetcher.ahead([spare(store.request(number)) for number in range(0, 20, 2)])
    assert launch.ended(lambda: tiers.budget.by_name()["fetched ahead"] == 10 * SIZE)
    assert store.loads == []
    answers.set()
    quiet()
    assert tiers.budget.by_name()["fetched ahead"] == 10 * SIZE
    for number in range(0, 20, 2):
        fetcher.get(store.request(number))
    assert tiers.budget.by_name()["fetched ahead"] == 0


def test_the_oldest_spare_blocks_give_way_and_the_others_stay(store: SlowStore) -> None:
    tiers = Tiers(None, budget=MemoryBudget(4 * SIZE))
    ahead = FetchedAhead(tiers)
    for number in range(3):
        assert ahead.add(spare(store.request(number)), store.part(number)) == []
    assert ahead.add(store.request(10), store.part(10)) == []
    [(block, data)] = ahead.add(store.request(11), store.part(11))
    assert (block.name, data) == ("0", store.part(0))
    assert [block.name for block, _ in ahead.add(store.request(12), store.part(12))] == ["1"]
    assert (numbers(ahead), ahead.spare_bytes) == ([2, 10, 11, 12], SIZE)
    assert [block.name for block, _ in ahead.add(store.request(13), store.part(13))] == ["2"]
    assert ahead.add(store.request(14), store.part(14)) == []
    assert (numbers(ahead), ahead.spare_bytes) == ([10, 11, 12, 13, 14], 0)
    assert tiers.budget.by_name()["fetched ahead"] == 5 * SIZE


def test_blocks_that_an_epoch_leaves_give_way_in_the_next(store: SlowStore) -> None:
    tiers = Tiers(None, budget=MemoryBudget(2 * SIZE))
    fetcher = Fetcher(store.load, tiers)
    fetcher.ahead([store.request(number) for number in (1, 3, 5)])
    quiet()
    fetcher.restart()
    fetcher.ahead([store.request(7)])
    quiet()
    assert tiers.budget.by_name()["fetched ahead"] == 2 * SIZE
    assert fetcher.has(store.request(7).block)
    for number in (1, 3, 5, 7):
        assert fetcher.get(store.request(number)) == store.part(number)
    assert max(store.times.values()) == 2


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_which_blocks_have_memory_of_their_own(mixed: bool, disk: bool, tmp_path: Path) -> None:
    size, data = 64 << 10, random.Random(0).randbytes(8 << 16)
    tiers = Tiers(MemoryTier(MemoryBudget(1 << 30)), DiskTier.open(tmp_path, 64 << 20) if disk else None)
    fetched = CachedStore(tiers, CheckedStore(lambda url, start, size: data, tiers.counters))
    found: dict[str, Data | BaseException | None] = {}
    run = [BlockRequest(Block(GROUP, str(number), size), "shard", number * size, size, lambda data: data,
                        not mixed or number == 3) for number in range(8)]  # fmt: skip
    fetched.fetch(run, lambda request, data, on_disk: found.update({request.block.name: data}))
    owners = {name for name, block in found.items() if range_of(block) is None}  # type: ignore[arg-type]
    assert owners == (set() if not mixed else {"3"} if disk else set(found))
    assert tiers.budget.bytes_of("parts of ranges") == (size if mixed and disk else 0)
    assert b"".join(found[str(number)] for number in range(8)) == data  # type: ignore[misc]
    assert tiers.disk is None or tiers.disk.flush(20)


def test_blocks_that_are_needed_later_are_fetched_once_by_a_small_memory() -> None:
    """Each range has a block that is needed soon. The others stay until they are needed, or go alone."""
    size, count, each = 64 << 10, 256, 8
    data, times = random.Random(0).randbytes(count * size), Counter[int]()

    def load(url: str, start: int, length: int) -> bytes:
        times.update(range(start // size, (start + length) // size))
        return data[start : start + length]

    tiers = Tiers(MemoryTier(MemoryBudget((count + 8) * size)))
    fetcher = Fetcher(load, tiers)
    fetcher.restart()
    requests = [BlockRequest(Block(GROUP, str(number), size), "shard", number * size, size, lambda data: data)
                for number in range(count)]  # fmt: skip
    for number in range(each):  # as a shuffle asks: the next block of each range
        for begin in range(0, count, each):
            run = requests[begin : begin + each]
            fetcher.ahead([one if one is run[number] else spare(one) for one in run[number:]], first=True)
            at = begin + number
            assert fetcher.get(requests[at]) == data[at * size : (at + 1) * size]
            assert tiers.budget.free >= 0
    assert max(times.values()) == 1
    assert len(times) == count
    del fetcher
    assert tiers.memory is not None
    assert tiers.memory.used == count * size  # all that was given is there in the next epoch
    quiet()


def test_blocks_that_are_not_asked_for_any_more_do_not_count(store: SlowStore) -> None:
    tiers = Tiers(None, budget=MemoryBudget(100 * SIZE))
    fetcher = Fetcher(store.load, tiers)
    fetcher.ahead([store.request(number) for number in range(5)])
    quiet()
    assert tiers.budget.by_name()["fetched ahead"] == 5 * SIZE
    del fetcher  # without a collection: nothing in it refers to it in a circle
    assert tiers.budget.by_name()["fetched ahead"] == 0


def test_a_tiny_budget_limits_no_blocks_that_the_disk_takes(store: SlowStore, tmp_path: Path) -> None:
    tiers = Tiers(MemoryTier(MemoryBudget(1)), DiskTier.open(tmp_path, 64 << 20))
    fetcher = Fetcher(store.load, tiers)
    assert fetcher.room > 0
    fetcher.ahead([spare(store.request(number)) for number in range(5)])
    quiet()
    assert fetcher.room > 0
    assert tiers.budget.by_name()["fetched ahead"] == 0
    for number in range(5):
        assert fetcher.get(store.request(number)) == store.part(number)
    assert max(store.times.values()) == 1


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DiskTier, threading.Event]]:
    """A disk that writes nothing until the event, with room for three blocks in its queue."""
    monkeypatch.setattr(write_behind, "_LEAST", 3 * SIZE)
    monkeypatch.setattr(range_sizes, "_FIRST", 2 * SIZE)
    go_on, real = threading.Event(), Entries.write

    def write(entries: Entries, block: Block, data: Data, partial: str) -> bool:
        assert go_on.wait(90)
        return real(entries, block, data, partial)

    monkeypatch.setattr(Entries, "write", write)
    disk = DiskTier.open(tmp_path, 64 << 20)
    yield disk, go_on
    go_on.set()
    assert disk.flush(20)


def test_nothing_is_fetched_for_later_while_the_disk_is_behind(
    store: SlowStore, silent: tuple[DiskTier, threading.Event]
) -> None:
    disk, go_on = silent
    fetcher = Fetcher(store.load, Tiers(MemoryTier(MemoryBudget(1)), disk))
    assert fetcher.room == 2 * SIZE
    for number in (1, 3):
        fetcher.get(store.request(number))
    assert fetcher.room == 0
    go_on.set()
    assert disk.flush(20)
    assert fetcher.room == 2 * SIZE


def test_a_block_that_is_needed_soon_does_not_wait_for_the_disk_and_the_others_do(
    store: SlowStore, silent: tuple[DiskTier, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "_SPARE_WAIT", 20.0)
    disk, go_on = silent
    fetcher = Fetcher(store.load, Tiers(MemoryTier(MemoryBudget(1)), disk))
    requests = [store.request(number) for number in range(10, 13)]
    for number in (1, 3, 5):
        fetcher.get(store.request(number))
    monkeypatch.setattr(range_sizes, "_FIRST", 3 * SIZE)
    fetcher.ahead([spare(requests[0]), requests[1], spare(requests[2])])
    assert launch.ended(lambda: (10 * SIZE, 3 * SIZE) in store.loads)
    assert fetcher.get(requests[1]) == store.part(11)
    assert not disk.has(requests[0].block)
    go_on.set()
    assert [fetcher.get(request) for request in requests[::2]] == [store.part(10), store.part(12)]
    assert max(store.times.values()) == 1
