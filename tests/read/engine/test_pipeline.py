"""The engine alone: how much it has ahead, where errors come, whom deadlines are for."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from shardstream.counters.layout import stage
from shardstream.counters.snapshots import histogram_of, read_own
from shardstream.errors import CorruptionError, StorageError
from shardstream.read.engine.frames import FrameId, Need
from shardstream.read.engine.pipeline import stream
from shardstream.read.engine.stats import Stats
from shardstream.read.engine.units import Budget
from tests.watch import ended


class Frames:
    """Frame n holds the number n; some cannot be read, or take long."""

    def __init__(self, bad: Sequence[int] = (), wait: Callable[[int], object] = lambda _: None) -> None:
        self.bad, self.wait = bad, wait

    def fetch_ahead(self, frames: Sequence[FrameId]) -> None: ...
    def counters(self) -> dict[str, Any]:
        return {}

    def memory(self) -> dict[str, int]:
        return {"limit": 0}

    def limit_idle(self, frames: int, batches: int) -> tuple[int, int]:
        return 0, 0

    def fetch(self, shard: int, frame: int) -> int:
        self.wait(frame)
        if frame in self.bad:
            raise CorruptionError(f"frame {frame}")
        return frame

    def recycle(self, buffer: int) -> None: ...
    def check_again(self) -> None: ...
    def name(self, shard: int, frame: int) -> str:
        return f"frame {frame}"


class Numbers:
    """Batches of numbers, one frame each."""

    unverified: Sequence[FrameId] = ()

    def __init__(self, batches: list[list[int]], direct: bool = False, grows: int = 0) -> None:
        self.batches, self.direct, self.grows = batches, direct, grows
        self.volume = 0
        self.sizes = [len(batch) for batch in batches]
        self.needs = [Need((0, number), 1, 1, 1) for batch in batches for number in batch]

    def prepare(self) -> None: ...

    def build(self, frames: Mapping[FrameId, Any]) -> Iterator[list[int]]:
        assert len(frames) == len(self.needs)
        for batch in self.batches:
            yield [frames[0, number] for number in batch]

    def parts(self, singles: bool) -> list[Numbers]:
        batches = self.batches
        if len(batches) == 1 and singles:
            batches = [[number] for number in batches[0]]
        return [Numbers([one], self.direct, self.grows) for one in batches] if len(batches) > 1 else []


def units(count: int, direct: bool = False) -> Iterator[Numbers]:
    """Units of three batches of two numbers."""
    for first in range(0, count, 6):
        yield Numbers([[n, n + 1] for n in range(first, first + 6, 2)], direct)


def until_error(batches: Iterator[Any]) -> tuple[list[Any], Exception]:
    found: deque[Any] = deque()
    with pytest.raises(Exception) as caught:
        found.extend(batches)
    return list(found), caught.value


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("bad", [0, 7, 10, 11, 47])
def test_what_is_in_front_of_a_frame_that_cannot_be_read_is_delivered(direct: bool, bad: int) -> None:
    found, error = until_error(stream(Frames([bad]), units(48, direct), tuple))
    assert found == [(n, n + 1) for n in range(0, bad - bad % 2, 2)]
    assert isinstance(error, CorruptionError)
    assert str(error) == f"frame {bad}"


@pytest.mark.parametrize("direct", [False, True])
def test_single_items_come_up_to_the_frame_that_cannot_be_read(direct: bool) -> None:
    built = stream(Frames([9]), units(48, direct), list, singles=True)
    found, _ = until_error(built)
    assert [number for batch in found for number in batch] == list(range(9))


@pytest.mark.parametrize("direct", [False, True])
def test_errors_of_finishing_and_of_planning_come_in_their_place(direct: bool) -> None:
    def finish(batch: list[int]) -> tuple[int, ...]:
        if batch[0] == 22:
            raise ValueError(batch)
        return tuple(batch)

    found, error = until_error(stream(Frames(), units(48, direct), finish))
    assert len(found) == 11
    assert isinstance(error, ValueError)

    def planned() -> Iterator[Numbers]:
        yield from units(24, direct)
        raise KeyError("plan")

    found, error = until_error(stream(Frames(), planned(), tuple))
    assert found == [(n, n + 1) for n in range(0, 24, 2)]
    assert isinstance(error, KeyError)


@pytest.mark.parametrize("direct", [False, True])
def test_what_fails_behind_the_last_batch_of_a_unit_is_raised(direct: bool) -> None:
    class Looks(Numbers):
        def build(self, frames: Mapping[FrameId, Any]) -> Iterator[list[int]]:
            yield from super().build(frames)
            raise CorruptionError("a file has changed")

    found, error = until_error(stream(Frames(), [Looks([[0, 1], [2, 3]], direct)], tuple))
    assert found == [(0, 1), (2, 3)]
    assert str(error) == "a file has changed"


def test_frames_that_a_unit_gives_back_may_wait_for_the_next_ones() -> None:
    class Pool(Frames):
        """Counts what waits, and drops what is beyond the limit, as a pool of buffers does."""

        limit = waits = dropped = 0

        def limit_idle(self, frames: int, batches: int) -> tuple[int, int]:
            self.limit = frames
            self._trim()
            return self.waits, 0

        def recycle(self, buffer: int) -> None:
            self.waits += 1
            self._trim()

        def _trim(self) -> None:
            beyond = max(0, self.waits - max(1, self.limit))
            self.waits, self.dropped = self.waits - beyond, self.dropped + beyond

    # The second unit reads the frames of the first one again. Meanwhile they fill `keep`, so that little may
    # wait. When it is over, all of them may.
    pool, units = Pool(), [Numbers([[n] for n in range(8)], direct=True) for _ in range(2)]
    for unit in units:
        unit.needs = [Need((0, n), 1, 2, 1) for n in range(8)]
    assert len(list(stream(pool, units, tuple, Budget(prefetch=8, keep=8)))) == 16
    assert pool.waits == 8
    assert not pool.dropped


def test_a_slow_function_of_the_user_has_no_deadline() -> None:
    def finish(batch: list[int]) -> tuple[int, ...]:
        if not batch[0]:
            time.sleep(4.5)
        return tuple(batch)

    # The frames themselves have it: a machine may stand still for so long.
    assert len(list(stream(Frames(), units(6), finish, Budget(threads=1, deadline=4.0)))) == 3


@pytest.mark.parametrize("direct", [False, True])
def test_bytes_that_do_not_come_have_one(direct: bool) -> None:
    never = threading.Event()
    source = Frames(wait=lambda frame: never.wait(20) if frame == 7 else None)
    try:
        _, error = until_error(stream(source, units(12, direct), tuple, Budget(threads=2, deadline=0.3)))
    finally:
        never.set()
    assert isinstance(error, StorageError)
    assert "0 s" in str(error)


@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=pytest.mark.long)])
def test_progress_of_any_kind_resets_the_deadline(direct: bool) -> None:
    source = Frames(wait=lambda _: time.sleep(0.1))
    # One thread, 54 frames: the last comes after 5.4 s, one after another within 0.1 s.
    assert len(list(stream(source, units(54, direct), tuple, Budget(threads=1, deadline=5.0)))) == 27


class Live:
    """Arrays that count how much of them there is."""

    def __init__(self) -> None:
        self.lock, self.now, self.most, self.made = threading.Lock(), 0, 0, 0

    def add(self, size: int) -> None:
        with self.lock:
            self.now += size
            self.made += size > 0
            self.most = max(self.most, self.now)


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("size", [1 << 20, 5 << 20])
def test_prefetch_bounds_what_is_built(threads: int, size: int) -> None:
    live = Live()

    def finish(batch: list[int]) -> np.ndarray[Any, Any]:
        found = np.zeros(size, np.uint8)
        live.add(size)
        weakref.finalize(found, live.add, -size)
        return found

    budget = Budget(prefetch=8 << 20, threads=threads)
    some = (Numbers([[n]], grows=1) for n in range(60))
    for number, _ in enumerate(stream(Frames(), some, finish, budget)):
        time.sleep(0.005)
        # What the consumer has, and what is ahead of it; two before any size is known.
        assert live.now <= size + max(8 << 20, 2 * size)
        if number == 30 and size < 4 << 20:
            assert ended(lambda: live.made > 30 + 3)  # it is ahead
    assert live.made == 60


def test_cheap_batches_are_ahead_as_far_as_there_is_room() -> None:
    made = []

    def finish(batch: list[int]) -> Any:
        made.extend(batch)
        return batch

    built = stream(Frames(), (Numbers([[n]], grows=2) for n in range(200)), finish, Budget(threads=2))
    for _ in range(20):
        next(built)
    assert ended(lambda: len(made) >= 20 + 8)
    built.close()


def test_a_fork_is_told_that_the_iteration_is_not_its_own() -> None:
    slow = stream(Frames(wait=lambda frame: time.sleep(0.4 if frame > 5 else 0)), units(60), tuple)
    next(slow)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            list(slow)
        except StorageError as error:
            code = 0 if "process" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    slow.close()


def test_counters_are_of_what_was_delivered() -> None:
    stats = Stats()
    assert len(list(stream(Frames(), units(60), tuple, stats=stats))) == 30
    assert (stats.batches, stats.samples, stats.frames) == (30, 60, 60)


@pytest.mark.parametrize("slow", [1, 2, 5, 9])
def test_a_slow_step_among_quick_ones_is_seen_when_it_ends(slow: int) -> None:
    stats = Stats()
    batches = stream(Frames(), [Numbers([[n] for n in range(20)], direct=True)], tuple, stats=stats)
    for number, _ in enumerate(batches):
        steps = histogram_of(stats.recorder, stage("step"))
        if number == slow:
            time.sleep(0.2)
        elif number == slow + 1:
            assert (steps.count, steps.percentile(100) > 0.15) == (number, True)
    assert histogram_of(stats.recorder, stage("step")).count == 20


def test_what_is_held_is_the_sum_of_all_loaders_and_goes_with_them() -> None:
    before = read_own().values
    one, other = Stats(), Stats()
    one.hold({"ram": {"limit": 100, "blocks": 30}}, 3)
    other.hold({"ram": {"limit": 50, "blocks": 5}}, 4)
    one.hold({"ram": {"limit": 100, "blocks": 20}}, 2)
    names = "ram_limit_bytes", "ram_used_bytes", "queue_depth"
    assert [read_own().values[name] - before[name] for name in names] == [150, 25, 6]
    other.let_go()
    assert [read_own().values[name] - before[name] for name in names] == [100, 20, 2]
    one.let_go()
    assert len(list(stream(Frames(), units(60), tuple, stats=one))) == 30
    assert [read_own().values[name] - before[name] for name in names] == [0, 0, 0]


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_what_is_behind_the_first_unit_is_planned_when_that_is_served(near: bool, direct: bool) -> None:
    asked: list[object] = []
    let = threading.Event()

    class Watched(Frames):
        def fetch_ahead(self, frames: Sequence[FrameId]) -> None:
            asked.append("frames")

    def planned() -> Iterator[Numbers]:
        for unit in units(18, direct):
            asked.append("unit")
            if asked.count("unit") > 1:
                let.set()
            yield unit

    def finish(batch: list[int]) -> tuple[int, ...]:
        finished.append(asked.count("unit"))
        return tuple(batch)

    # With a far store the second unit is planned while the frames of the first one are on their way.
    frames, finished = Watched(wait=lambda number: near or number or let.wait(20)), list[int]()
    built = stream(frames, planned(), finish, near=near)
    assert next(built) == (0, 1)
    assert asked[:2] == ["unit", "frames"]
    if near and direct:
        assert finished[0] == 1  # planning took nothing of the first batch
    if not near:
        assert let.is_set()
    assert [number for batch in built for number in batch] == list(range(2, 18))


def test_what_follows_a_first_unit_of_many_batches_begins_between_them() -> None:
    asked = threading.Event()
    source = Frames(wait=lambda frame: asked.set() if frame >= 20 else None)
    two = (Numbers([[n] for n in range(first, first + 20)], direct=True) for first in (0, 20))
    built = stream(source, two, tuple, near=True)
    assert next(built) == (0,)
    taken = 1
    while taken < 19 and not asked.wait(0.05):
        next(built)
        taken += 1
    assert asked.is_set()  # the unit is not over
    assert [number for batch in built for number in batch] == list(range(taken, 40))


def test_with_all_near_threads_have_the_first_unit_before_more_is_planned() -> None:
    here: list[int] = []
    let, seen = threading.Event(), list[list[int]]()

    class Slow(Frames):
        def fetch(self, shard: int, frame: int) -> int:
            time.sleep(0.1 if frame == 5 else 0)  # the last one of the first unit
            here.append(frame)
            return frame

    def planned() -> Iterator[Numbers]:
        first, second = units(12)
        yield first
        seen.append(sorted(here))
        let.set()
        yield second

    def finish(batch: list[int]) -> tuple[int, ...]:
        assert let.wait(20)  # it is planned while the first batch is built
        return tuple(batch)

    assert len(list(stream(Slow(), planned(), finish, near=True))) == 6
    assert seen == [[0, 1, 2, 3, 4, 5]]


def test_a_plan_without_units_ends_and_goes_on() -> None:
    assert list(stream(Frames(), iter(()), tuple, near=True)) == []
    assert list(stream(Frames(), units(12, True), tuple, near=True)) == [(n, n + 1) for n in range(0, 12, 2)]
