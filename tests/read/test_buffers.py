"""Memory that many threads take at once, and that comes back in any of them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.processes import rollup_fields
from shardstream.read.buffers import Buffer, BufferPool, FreeList, rounded


@pytest.fixture
def often_switched() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def address(buffer: Buffer) -> int:
    found: int = buffer.__array_interface__["data"][0]
    return found


def test_many_threads_lease_buffers_and_none_gets_what_another_has(often_switched: None) -> None:
    pool, failed = BufferPool(), []
    pool.limit_to(1 << 20)

    def work(number: int) -> None:
        try:
            for turn in range(4_000):
                first, second, third = pool.lease(100 + turn * 3700 % 9000), pool.lease(50), pool.take(70)
                first[:] = second[:] = third[:] = number
                assert (first == number).all()
                assert (second == number).all()
                assert (third == number).all()
                pool.give_back(third)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert pool.idle <= 1 << 20


def test_a_buffer_is_used_again_when_its_last_view_is_gone() -> None:
    pool = BufferPool()
    first = pool.lease(1000)
    where, view = address(first), first.view(np.uint32)[5:]
    del first
    assert address(pool.lease(1000)) != where
    pool.limit_to(1 << 20)
    del view
    assert where in (address(pool.take(500)), address(pool.take(500)))


def test_no_more_waits_than_the_limit_allows_or_one() -> None:
    pool = BufferPool()
    for limit, waiting in ((0, 1), (3 << 20, 3), (100 << 20, 5), (1 << 20, 1)):
        pool.limit_to(limit)
        for buffer in [pool.take(1 << 20) for _ in range(5)]:
            pool.give_back(buffer)
        assert pool.idle == waiting << 20
    assert pool.limit_to(0) == 1 << 20
    leased = [pool.lease(1 << 20) for _ in range(5)]
    del leased
    assert pool.idle == 1 << 20


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 50_000)), max_size=60),
    st.integers(0, 100_000),
    st.one_of(st.none(), st.integers(1, 4)),
)
def test_a_free_list_gives_what_fits_and_holds_its_limits(
    steps: list[tuple[bool, int]], limit: int, most: int | None
) -> None:
    free: FreeList[int] = FreeList(limit, most)
    waiting: dict[int, int] = {}
    for number, (gives, size) in enumerate(steps):
        if gives:
            waiting[number] = rounded(size)
            for dropped in free.give_back(number, rounded(size)):
                del waiting[dropped]
            assert number in waiting
        else:
            found = free.take(size)
            fitting = [capacity for capacity in waiting.values() if size <= capacity <= size * 5 // 4 + 4096]
            assert (found is None) == (not fitting)
            if found is not None:
                assert waiting.pop(found) == min(fitting)
        assert free.size == sum(waiting.values())
        assert len(waiting) <= 1 or (free.size <= limit and (most is None or len(waiting) <= most))


@given(st.integers(0, 1 << 40))
def test_capacities_are_a_little_larger(size: int) -> None:
    assert size <= rounded(size) <= max(4096, size + size // 16 + 4096)
    assert rounded(rounded(size)) == rounded(size)


def test_the_system_has_large_buffers_back_though_others_between_them_stay() -> None:
    pool, size = BufferPool(), 1 << 18
    buffers = [pool.take(size) for _ in range(400)]
    for buffer in buffers:
        buffer[:] = 1
    before = rollup_fields("/proc/self/smaps_rollup")["Pss_Anon"] << 10
    del buffers[::2], buffer
    assert rollup_fields("/proc/self/smaps_rollup")["Pss_Anon"] << 10 < before - 150 * size
