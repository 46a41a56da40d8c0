"""The tiers and the fetcher: each block once, in few requests, sound or a typed error."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shardstream.errors import CorruptionError, OptionError, StorageError
from shardstream.storage import fetch
from shardstream.storage.blocks import Block
from shardstream.storage.cache import Cache, Tiers
from shardstream.storage.disk import Disk
from shardstream.storage.fetch import Fetcher
from shardstream.storage.flights import Want
from shardstream.storage.memory import Memory
from shardstream.storage.waits import Waits, current, work_for
from tests.distributed import launch
from tests.storage.disks import files

GROUP = "ab" * 16
SIZE = 1000


class SlowStore:
    """An object of many blocks; loads take a while, and may fail or flip a bit."""

    def __init__(self, blocks: int = 64, delay: float = 0.0) -> None:
        self.data = random.Random(0).randbytes(blocks * SIZE)
        self.delay = delay
        self.loads: list[tuple[int, int]] = []
        self.times: Counter[int] = Counter()
        self.fail: set[int] = set()  # blocks that cannot be read
        self.flip: Counter[int] = Counter()  # blocks that come damaged, so many times
        self._lock = threading.Lock()

    def load(self, url: str, start: int, size: int) -> bytes:
        time.sleep(self.delay)
        data = bytearray(self.data[start : start + size])
        with self._lock:
            self.loads.append((start, size))
            for number in range(start // SIZE, (start + size) // SIZE):
                self.times[number] += 1
                if number in self.fail:
                    raise StorageError(f"{url}: gone")
                if self.flip[number] > 0:
                    self.flip[number] -= 1
                    data[number * SIZE - start] ^= 1
        return bytes(data)

    def part(self, number: int) -> bytes:
        return self.data[number * SIZE : (number + 1) * SIZE]

    def want(self, number: int) -> Want:
        def accept(stored: bytes) -> bytes:
            if stored != self.part(number):
                raise CorruptionError(f"shard, frame {number}: damaged")
            return stored

        return Want(Block(GROUP, str(number), SIZE), "shard", number * SIZE, SIZE, accept)


def quiet() -> None:
    """Wait until no thread of ours is at work."""
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("shardstream") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


def test_many_threads_that_want_a_block_fetch_it_once(store: SlowStore) -> None:
    store.delay = 0.05
    fetcher = Fetcher(store.load, Tiers(Memory(SIZE)))  # without, who comes late would fetch it again
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: fetcher.get(store.want(3)), range(16))) == {store.part(3)}
    assert store.times == {3: 1}


def test_neighbours_come_in_one_range_and_nothing_twice(store: SlowStore) -> None:
    fetcher = Fetcher(store.load, Tiers())
    order = [5, 40, 6, 4, 41, 20]
    fetcher.ahead([store.want(number) for number in order])
    quiet()
    assert sorted(store.loads) == [(4 * SIZE, 3 * SIZE), (20 * SIZE, SIZE), (40 * SIZE, 2 * SIZE)]
    found = [fetcher.get(store.want(number)) for number in order]
    assert found == [store.part(number) for number in order]
    assert all(memoryview(part).readonly for part in found)  # others are given the same bytes
    assert len(store.loads) == fetcher.requests == 3
    assert fetcher.remote_bytes == 6 * SIZE


def test_ahead_is_parallel_returns_at_once_and_leaves_no_thread(store: SlowStore) -> None:
    store.delay = 0.1
    fetcher = Fetcher(store.load, Tiers())
    running = threading.active_count()
    fetcher.ahead(store.want(number) for number in range(0, 64, 2))
    assert store.loads == []
    assert fetcher.get(store.want(62)) == store.part(62)
    quiet()
    assert threading.active_count() <= running
    assert max(store.times.values()) == 1


def test_an_error_ahead_is_raised_by_who_asks_and_the_next_try_is_fresh(store: SlowStore) -> None:
    fetcher = Fetcher(store.load, Tiers())
    store.fail = {7}
    fetcher.ahead([store.want(7)])
    quiet()
    with pytest.raises(StorageError, match="gone"):
        fetcher.get(store.want(7))
    store.fail = set()
    assert fetcher.get(store.want(7)) == store.part(7)


def test_the_first_frames_of_an_epoch_have_the_connections_for_themselves(
    store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_HEAD_START", 60.0)
    asked, answers = set(), threading.Event()

    def load(url: str, start: int, size: int) -> bytes:
        asked.add(start // SIZE)
        assert answers.wait(20)
        return store.load(url, start, size)

    fetcher = Fetcher(load, Tiers())
    fetcher.restart()
    fetcher.ahead([store.want(50)], first=True)  # an index, say
    fetcher.ahead([store.want(1), store.want(20)])
    fetcher.ahead([store.want(51)], first=True)
    fetcher.ahead([store.want(40)])
    assert fetcher.room == 0
    assert launch.ended(lambda: asked == {50, 1, 20, 51})
    time.sleep(0.05)
    assert asked == {50, 1, 20, 51}
    answers.set()
    assert fetcher.get(store.want(40)) == store.part(40)
    assert fetcher.room > 0
    quiet()


@pytest.mark.parametrize("held", ["memory", "disk"])
def test_what_is_needed_later_comes_as_far_as_a_tier_has_room(
    store: SlowStore, held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_FIRST", 2 * SIZE)
    answers = threading.Event()

    def load(url: str, start: int, size: int) -> bytes:
        assert answers.wait(20)
        return store.load(url, start, size)

    disk = Disk.open(tmp_path, 64 << 20) if held == "disk" else None
    fetcher = Fetcher(load, Tiers(Memory(10 * SIZE), disk))
    assert fetcher.room == 2 * SIZE
    later = [store.want(number)._replace(soon=False) for number in range(0, 18, 2)]
    fetcher.ahead([*later, store.want(30)])
    assert launch.ended(lambda: fetcher.room == (2 * SIZE if disk else 0))  # on their way
    answers.set()
    quiet()
    assert fetcher.room == (2 * SIZE if disk else 0)  # here
    for want in later:
        assert fetcher.get(want) == store.part(want.start // SIZE)
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

    fetcher, want, first = Fetcher(load, Tiers()), store.want(3), Waits()
    with ThreadPoolExecutor(1, initializer=work_for, initargs=(first,)) as one, ThreadPoolExecutor(4) as pool:
        begun = one.submit(fetcher.ahead, [want]) if ahead else one.submit(fetcher.get, want)
        assert asked.wait(20)
        others = [pool.submit(fetcher.get, want) for _ in range(4)]
        time.sleep(0.05)  # they wait for it by now, mostly; who comes later asks for it anew
        silent.clear()
        first.end()
        assert {other.result(20) for other in others} == {store.part(3)}
        error = begun.exception(20)
    assert error is None if ahead else isinstance(error, StorageError)
    quiet()


@pytest.mark.parametrize("ahead", [True, False])
def test_a_damaged_block_is_fetched_once_more_then_an_error(store: SlowStore, ahead: bool) -> None:
    fetcher = Fetcher(store.load, Tiers())
    store.flip[2] = 1
    store.flip[9] = 2
    if ahead:
        fetcher.ahead([store.want(number) for number in (1, 2, 3, 9)])
        quiet()
        assert store.flip == {2: 0, 9: 0}
        store.flip[9] = 2
    assert fetcher.get(store.want(2)) == store.part(2)
    with pytest.raises(CorruptionError, match="frame 9"):
        fetcher.get(store.want(9))
    assert fetcher.refetches == (3 if ahead else 2)


def test_two_readers_of_one_cache_fetch_each_block_once(store: SlowStore, tmp_path: Path) -> None:
    store.delay = 0.01
    fetchers = [Fetcher(store.load, Tiers(None, Disk.open(tmp_path))) for _ in range(4)]
    wants = [store.want(number) for number in range(64)]

    def read(fetcher: Fetcher) -> None:
        for begin in range(0, 64, 8):
            fetcher.ahead(wants[begin : begin + 8])
            assert [fetcher.get(want) for want in wants[begin : begin + 8]] == [
                store.part(number) for number in range(begin, begin + 8)
            ]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, fetchers))
    assert sum(store.times.values()) == 64


def test_memory_keeps_what_is_needed_soonest(store: SlowStore) -> None:
    memory = Memory(20 * SIZE)
    tiers = Tiers(memory)
    tiers.plan(store, lambda group: np.arange(64.0))
    fetcher = Fetcher(store.load, tiers)
    order = list(range(64))
    random.Random(0).shuffle(order)
    for number in order:
        fetcher.get(store.want(number))
        assert memory.used <= memory.limit
    assert all(memory.has(store.want(number).block) for number in range(18))
    before = fetcher.requests
    for number in range(18):
        fetcher.get(store.want(number))
    assert fetcher.requests == before


def test_options_are_checked() -> None:
    for bad in ({"disk": "1GB"}, {"dir": "x", "disk": "much"}, {"ram": 0}, {"dir": "x", "disk_format": "zip"},
                {"always": True}, {"disk_format": "raw"}):  # fmt: skip
        with pytest.raises(OptionError):
            Cache(**bad)


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
        self.disk = Disk.open(self.folder.name, self.limit * 4096) if self.limit else None
        memory = Memory(self.memory * SIZE) if self.memory else None
        self.fetcher = Fetcher(self.store.load, Tiers(memory, self.disk, self.mapped))

    @rule(number=st.integers(0, 31))
    def read(self, number: int) -> None:
        assert self.fetcher.get(self.store.want(number)) == self.store.part(number)

    @rule(numbers=st.lists(st.integers(0, 31), max_size=12))
    def read_ahead(self, numbers: list[int]) -> None:
        self.fetcher.ahead([self.store.want(number) for number in numbers])
        for number in numbers:
            assert self.fetcher.get(self.store.want(number)) == self.store.part(number)

    @rule(numbers=st.lists(st.integers(0, 31), max_size=12))
    def expect_and_forget(self, numbers: list[int]) -> None:
        self.fetcher.ahead([self.store.want(number) for number in numbers])

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
        self.fetcher.tiers.plan(self.fetcher, lambda group: np.array(values))

    @invariant()
    def within_bounds(self) -> None:
        if hasattr(self, "fetcher"):
            memory = self.fetcher.tiers.memory
            if memory is not None:
                with memory._lock:  # what nobody waits for still comes
                    assert memory.used == sum(map(len, memory._held.values())) <= memory.limit
            if self.disk is not None:
                assert len(files(Path(self.disk.path))) <= self.limit

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            quiet()
            self.folder.cleanup()


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCacheMachine = CacheMachine.TestCase
