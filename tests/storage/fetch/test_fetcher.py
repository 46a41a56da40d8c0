"""The fetcher and its tiers: each block once, in few requests, sound or a typed error."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shardstream.errors import CorruptionError, StorageError
from shardstream.memory import MemoryBudget
from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.cache.memory import MemoryTier
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.cancellation import CancelScope, current, work_for, working_for
from shardstream.storage.fetch import planner, range_sizes
from shardstream.storage.fetch.fetcher import Fetcher
from shardstream.storage.fetch.in_flight import BlockRequest
from tests.distributed import launch
from tests.storage.disks import files
from tests.storage.fetch.stores import SIZE, SlowStore, quiet


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


def test_many_threads_that_want_a_block_fetch_it_once(store: SlowStore) -> None:
    store.delay = 0.05
    # Without memory, a thread that comes late would fetch it again.
    fetcher = Fetcher(store.load, Tiers(MemoryTier(MemoryBudget(SIZE))))
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: fetcher.get(store.request(3)), range(16))) == {store.part(3)}
    assert store.times == {3: 1}


def test_who_waits_for_plans_finds_their_blocks_sent_for(store: SlowStore) -> None:
    fetcher, go, seen = Fetcher(store.load, Tiers()), threading.Event(), list[int]()

    def slowly() -> Iterator[BlockRequest]:
        for number in (3, 20):
            assert go.wait(20)
            seen.append(number)
            yield store.request(number)

    fetcher.restart()
    fetcher.ahead(slowly())
    fetcher.settle(0.01)  # no longer than that
    assert seen == []
    go.set()
    fetcher.settle(20)
    assert seen == [3, 20]
    # Both are on their way, or here: to ask for them sends nothing.
    assert [fetcher.get(store.request(number)) for number in seen] == [store.part(3), store.part(20)]
    assert store.times == {3: 1, 20: 1}


def test_only_the_first_frames_of_an_epoch_are_waited_for(store: SlowStore) -> None:
    fetcher, go = Fetcher(store.load, Tiers()), threading.Event()

    def slowly() -> Iterator[BlockRequest]:
        assert go.wait(20)
        yield store.request(20)

    fetcher.restart()
    fetcher.ahead([store.request(3)])
    fetcher.settle(20)
    fetcher.ahead(slowly())
    begin = time.monotonic()
    fetcher.settle(20)
    assert time.monotonic() - begin < 10  # blocks that are needed later
    go.set()


def test_the_end_of_an_iterator_ends_its_wait_for_plans(store: SlowStore) -> None:
    fetcher, go, scope = Fetcher(store.load, Tiers()), threading.Event(), CancelScope()

    def slowly() -> Iterator[BlockRequest]:
        assert go.wait(20)
        yield store.request(3)

    fetcher.restart()
    fetcher.ahead(slowly())
    timer = threading.Timer(0.05, scope.end)
    timer.start()
    begin = time.monotonic()
    with working_for(scope):
        fetcher.settle(15)
    assert time.monotonic() - begin < 10
    go.set()
    fetcher.settle(20)  # the thread that plans is well
    assert fetcher.get(store.request(3)) == store.part(3)
    timer.join()


def test_neighbours_come_in_one_range_and_nothing_twice(store: SlowStore) -> None:
    fetcher = Fetcher(store.load, Tiers())
    order = [5, 40, 6, 4, 41, 20]
    fetcher.ahead([store.request(number) for number in order])
    quiet()
    assert sorted(store.loads) == [(4 * SIZE, 3 * SIZE), (20 * SIZE, SIZE), (40 * SIZE, 2 * SIZE)]
    found = [fetcher.get(store.request(number)) for number in order]
    assert found == [store.part(number) for number in order]
    assert all(memoryview(part).readonly for part in found)  # others are given the same bytes
    assert len(store.loads) == fetcher.tiers.counters.requests == 3
    assert fetcher.tiers.counters.remote_bytes == 6 * SIZE


def test_ahead_is_parallel_returns_at_once_and_leaves_no_thread(store: SlowStore) -> None:
    store.delay = 0.1
    fetcher = Fetcher(store.load, Tiers())
    running = threading.active_count()
    fetcher.ahead(store.request(number) for number in range(0, 64, 2))
    assert store.loads == []
    assert fetcher.get(store.request(62)) == store.part(62)
    quiet()
    assert threading.active_count() <= running
    assert max(store.times.values()) == 1


def test_an_error_ahead_is_raised_by_who_asks_and_the_next_try_is_fresh(store: SlowStore) -> None:
    fetcher = Fetcher(store.load, Tiers())
    store.fail = {7}
    fetcher.ahead([store.request(7)])
    quiet()
    with pytest.raises(StorageError, match="gone"):
        fetcher.get(store.request(7))
    store.fail = set()
    assert fetcher.get(store.request(7)) == store.part(7)


def test_the_first_frames_of_an_epoch_have_the_connections_for_themselves(
    store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_HEAD_START", 60.0)
    asked, answers = set(), threading.Event()

    def load(url: str, start: int, size: int) -> bytes:
        asked.add(start // SIZE)
        assert answers.wait(90)
        return store.load(url, start, size)

    fetcher = Fetcher(load, Tiers())
    fetcher.restart()
    fetcher.ahead([store.request(50)], first=True)  # an index, say
    fetcher.ahead([store.request(1), store.request(20)])
    fetcher.ahead([store.request(51)], first=True)
    fetcher.ahead([store.request(40)])
    assert fetcher.room == 0
    assert launch.ended(lambda: asked == {50, 1, 20, 51})
    time.sleep(0.05)
    assert asked == {50, 1, 20, 51}
    answers.set()
    assert fetcher.get(store.request(40)) == store.part(40)
    assert fetcher.room > 0
    quiet()


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_what_is_needed_later_comes_as_far_as_a_tier_has_room(
    store: SlowStore, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_sizes, "_FIRST", 2 * SIZE)
    answers = threading.Event()

    def load(url: str, start: int, size: int) -> bytes:
        assert answers.wait(90)
        return store.load(url, start, size)

    disk = DiskTier.open(tmp_path, 64 << 20) if place == "disk" else None
    fetcher = Fetcher(load, Tiers(MemoryTier(MemoryBudget(10 * SIZE)), disk))
    assert fetcher.room == 2 * SIZE
    spare = [store.request(number)._replace(soon=False) for number in range(0, 18, 2)]
    fetcher.ahead([*spare, store.request(30)])
    assert launch.ended(lambda: fetcher.room == (2 * SIZE if disk else 0))  # on their way
    answers.set()
    quiet()
    assert fetcher.room == (2 * SIZE if disk else 0)  # here
    for request in spare:
        assert fetcher.get(request) == store.part(request.start // SIZE)
    assert fetcher.room == 2 * SIZE
    assert max(store.times.values()) == 1


@pytest.mark.parametrize("ahead", [True, False])
def test_who_waits_for_a_block_gets_it_when_the_iterator_that_fetches_it_ends(
    store: SlowStore, ahead: bool
) -> None:
    silent, asked = threading.Event(), threading.Event()
    silent.set()

    def load(url: str, start: int, size: int) -> bytes:
        if not silent.is_set():
            return store.load(url, start, size)
        asked.set()
        try:
            return current().result(Future(), 60)
        except CancelledError as error:
            raise StorageError(f"{url}: given up") from error

    fetcher, request, first = Fetcher(load, Tiers()), store.request(3), CancelScope()
    with ThreadPoolExecutor(1, initializer=work_for, initargs=(first,)) as one, ThreadPoolExecutor(4) as pool:
        begun = one.submit(fetcher.ahead, [request]) if ahead else one.submit(fetcher.get, request)
        assert asked.wait(90)
        others = [pool.submit(fetcher.get, request) for _ in range(4)]
        time.sleep(0.05)  # they wait for it by now, mostly; who comes later asks for it anew
        silent.clear()
        first.end()
        assert {other.result(90) for other in others} == {store.part(3)}
        error = begun.exception(20)
    assert error is None if ahead else isinstance(error, StorageError)
    quiet()


@pytest.mark.parametrize("ahead", [True, False])
def test_a_damaged_block_is_fetched_once_more_then_an_error(store: SlowStore, ahead: bool) -> None:
    fetcher = Fetcher(store.load, Tiers())
    store.flip[2] = 1
    store.flip[9] = 2
    if ahead:
        fetcher.ahead([store.request(number) for number in (1, 2, 3, 9)])
        quiet()
        assert store.flip == {2: 0, 9: 0}
        store.flip[9] = 2
    assert fetcher.get(store.request(2)) == store.part(2)
    with pytest.raises(CorruptionError, match="frame 9"):
        fetcher.get(store.request(9))
    assert fetcher.tiers.counters.refetches == (3 if ahead else 2)


class BrokenError(Exception):
    """What nobody expects."""


@pytest.mark.parametrize("place", ["load", "accept", "write", "lock", "has"])
def test_what_fails_ahead_in_any_place_is_told_to_who_waits(
    store: SlowStore, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskTier.open(tmp_path)
    fetcher, bad, begun = Fetcher(store.load, Tiers(None, disk)), threading.Event(), threading.Event()
    bad.set()

    def breaking(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if bad.is_set():
                assert begun.wait(90)  # by then somebody waits
                raise BrokenError
            return real(*arguments)

        return call

    requests = [store.request(number) for number in range(8)]
    if place == "accept":
        requests = [request._replace(accept=breaking(request.accept)) for request in requests]
    else:
        owner: Any = {"load": fetcher.store._store, "lock": disk}.get(place, fetcher.tiers)
        name = {"load": "_load"}.get(place, place)
        setattr(owner, name, breaking(getattr(owner, name)))
    with ThreadPoolExecutor(8) as pool:
        fetcher.ahead(requests)
        assert launch.ended(lambda: fetcher._arrivals._in_flight)
        waiting = [pool.submit(fetcher.get, request) for request in requests]
        time.sleep(0.05)
        begun.set()
        errors = [waiter.exception(20) for waiter in waiting]
    # A waiter hears of it, typed; who came to it first finds out by itself.
    heard = [error for error in errors if isinstance(error, StorageError)]
    assert all(isinstance(error, (BrokenError, StorageError)) for error in errors if error is not None)
    assert all(isinstance(error.__cause__, BrokenError) for error in heard)
    quiet()
    if place in ("load", "accept", "write", "lock"):
        assert heard
    else:
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [BrokenError]
    bad.clear()
    assert not fetcher._arrivals._in_flight
    assert [fetcher.get(request) for request in requests] == [store.part(number) for number in range(8)]


def test_a_pool_works_after_a_thousand_failures(store: SlowStore) -> None:
    def load(url: str, start: int, size: int) -> bytes:
        if bad:
            raise BrokenError
        return store.load(url, start, size)

    fetcher, bad = Fetcher(load, Tiers()), True
    for _ in range(40):
        fetcher.ahead(store.request(number) for number in range(0, 50, 2))  # no two are neighbours
        quiet()
    with pytest.raises(BrokenError):
        fetcher.get(store.request(3))
    bad = False
    fetcher.ahead([store.request(3)])
    quiet()
    assert fetcher.get(store.request(3)) == store.part(3)
    assert store.times == {3: 1}


def test_a_plan_that_fails_brings_what_it_named_and_the_next_is_as_good(
    store: SlowStore, caplog: pytest.LogCaptureFixture
) -> None:
    fetcher = Fetcher(store.load, Tiers())

    def plan() -> Iterator[BlockRequest]:
        yield store.request(1)
        raise BrokenError

    for _ in range(3):
        fetcher.ahead(plan())
    fetcher.ahead([store.request(5)])
    quiet()
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [BrokenError] * 3
    assert sorted(store.times) == [1, 5]
    assert (fetcher.get(store.request(1)), fetcher.get(store.request(5))) == (store.part(1), store.part(5))
    assert fetcher._arrivals._plans == 0


def test_two_readers_of_one_cache_fetch_each_block_once(store: SlowStore, tmp_path: Path) -> None:
    store.delay = 0.01
    fetchers = [Fetcher(store.load, Tiers(None, DiskTier.open(tmp_path))) for _ in range(4)]
    requests = [store.request(number) for number in range(64)]

    def read(fetcher: Fetcher) -> None:
        for begin in range(0, 64, 8):
            fetcher.ahead(requests[begin : begin + 8])
            assert [fetcher.get(request) for request in requests[begin : begin + 8]] == [
                store.part(number) for number in range(begin, begin + 8)
            ]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, fetchers))
    assert sum(store.times.values()) == 64


def test_memory_keeps_what_is_needed_soonest(store: SlowStore) -> None:
    memory = MemoryTier(MemoryBudget(20 * SIZE))
    tiers = Tiers(memory)
    tiers.set_next_uses(store, lambda group: np.arange(64.0))
    fetcher = Fetcher(store.load, tiers)
    order = list(range(64))
    random.Random(0).shuffle(order)
    for number in order:
        fetcher.get(store.request(number))
        assert memory.used <= memory.limit
    assert all(memory.has(store.request(number).block) for number in range(18))
    before = tiers.counters.requests
    for number in range(18):
        fetcher.get(store.request(number))
    assert tiers.counters.requests == before


class CacheMachine(RuleBasedStateMachine):
    """Whatever happens to the tiers, what is asked for is what the store holds."""

    @initialize(
        memory=st.sampled_from([0, 5, 40]), disk=st.sampled_from([0, 3, 12, 40]), mapped=st.booleans()
    )
    def start(self, memory: int, disk: int, mapped: bool) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory(prefix="cache-machine-")
        self.store = SlowStore(32)
        self.memory, self.limit, self.mapped = memory, disk, mapped
        self.reopen()

    @rule()
    def reopen(self) -> None:
        self.disk = DiskTier.open(self.folder.name, self.limit * 4096) if self.limit else None
        memory = MemoryTier(MemoryBudget(self.memory * SIZE)) if self.memory else None
        self.fetcher = Fetcher(self.store.load, Tiers(memory, self.disk, self.mapped))

    @rule(number=st.integers(0, 31))
    def read(self, number: int) -> None:
        assert self.fetcher.get(self.store.request(number)) == self.store.part(number)

    @rule(numbers=st.lists(st.integers(0, 31), max_size=12))
    def read_ahead(self, numbers: list[int]) -> None:
        self.fetcher.ahead([self.store.request(number) for number in numbers])
        for number in numbers:
            assert self.fetcher.get(self.store.request(number)) == self.store.part(number)

    @rule(numbers=st.lists(st.integers(0, 31), max_size=12))
    def expect_and_forget(self, numbers: list[int]) -> None:
        self.fetcher.ahead([self.store.request(number) for number in numbers])

    @rule(
        choice=st.integers(0, 1 << 30),
        at=st.integers(0, SIZE + 7),
        how=st.sampled_from(["flip", "cut", "delete"]),
    )
    def damage(self, choice: int, at: int, how: str) -> None:
        if self.disk is None or not self.disk.flush(20):
            return
        found = files(Path(self.disk.path))
        if found and not self.mapped:  # what is mapped is never changed in place
            path = found[choice % len(found)]
            if how == "delete":
                path.unlink(missing_ok=True)
                return
            # What is still fetched may push it out meanwhile: it must not come to be again.
            with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
                data = file.read()
                if len(data) <= at:  # cut before
                    return
                if how == "cut":
                    file.truncate(at)
                else:
                    file.seek(at)
                    file.write(bytes([data[at] ^ 4]))

    @rule(flips=st.lists(st.integers(0, 31), max_size=3, unique=True))
    def damage_on_the_wire(self, flips: list[int]) -> None:
        for number in flips:
            self.store.flip.setdefault(number, 1)  # once: a second try is all that there is

    @rule()
    def clear(self) -> None:
        if self.disk is not None:
            self.disk.clear()

    @rule(values=st.lists(st.floats(0, 2), min_size=32, max_size=32))
    def plan(self, values: list[float]) -> None:
        self.fetcher.tiers.set_next_uses(self.fetcher, lambda group: np.array(values))

    @invariant()
    def within_bounds(self) -> None:
        if hasattr(self, "fetcher"):
            memory = self.fetcher.tiers.memory
            if memory is not None:
                with memory._lock:  # blocks that were expected still come
                    assert memory.used == sum(map(len, memory._blocks.values()))
                # A block that comes is there until the thread that brings it has made room.
                assert launch.ended(lambda: memory.used <= memory.limit)
            if self.disk is not None:
                assert len(files(Path(self.disk.path))) <= self.limit

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            quiet()
            self.folder.cleanup()


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCacheMachine = CacheMachine.TestCase
