"""A pool whose tasks fail: its threads go on, and nothing is lost without a word."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from shardstream.storage.cancellation import CancelScope, current, working_for
from shardstream.storage.fetch.pool import ElasticPool
from tests.distributed import launch


def fail() -> None:
    raise ZeroDivisionError


def leave() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("task", [fail, leave])
@pytest.mark.parametrize("most", [1, 8])
def test_a_thousand_failures_take_no_place(
    most: int, task: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    pool, done = ElasticPool(most), threading.Event()
    with caplog.at_level(logging.ERROR, "shardstream"):
        for _ in range(1000):
            pool.submit(task)
        pool.submit(done.set)
        assert done.wait(90)
        assert launch.ended(lambda: pool._running == 0)
    told = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert told == [ZeroDivisionError if task is fail else SystemExit] * 1000


def test_a_limit_that_cannot_be_told_loses_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    pool, done, bad = ElasticPool(2), threading.Event(), True

    def most() -> int:
        if bad and threading.current_thread() is not threading.main_thread():
            raise OSError
        return 2

    pool.most = most
    for _ in range(5):
        pool.submit(fail)
        assert launch.ended(lambda: pool._running == 0)
    bad = False
    pool.submit(done.set)
    assert done.wait(90)


def test_a_thread_that_failed_works_for_nobody() -> None:
    pool, seen, mine = ElasticPool(1), [], CancelScope()
    with working_for(mine):
        pool.submit(fail)
    pool.submit(lambda: seen.append(current()))
    assert launch.ended(lambda: len(seen) == 1)
    assert seen[0] is not mine


def test_tasks_of_many_bytes_are_few_at_a_time_and_small_ones_many() -> None:
    pool, go_on = ElasticPool(12, 100, 3), threading.Event()
    begun: list[int] = []

    def task(size: int) -> Callable[[], None]:
        def run() -> None:
            begun.append(size)
            assert go_on.wait(90)

        return run

    for size in (60,) * 5 + (5,) * 30:
        pool.submit(task(size), size)
    assert launch.ended(lambda: len(begun) == 3)  # 120 bytes, in the first two: few may go on
    assert not launch.ended(lambda: len(begun) > 3, 0.2)
    go_on.set()
    assert launch.ended(lambda: len(begun) == 35 and pool._running == 0)
    assert (pool._bytes, pool._busy) == (0, 0)
    go_on.clear()
    begun.clear()
    for _ in range(30):
        pool.submit(task(5), 5)
    assert launch.ended(lambda: len(begun) == 12)  # as many as there may be at all
    go_on.set()
    assert launch.ended(lambda: pool._running == 0)


def test_small_tasks_behind_a_large_one_begin_together() -> None:
    pool, large, small, begun = ElasticPool(8, 100, 1), threading.Event(), threading.Event(), []

    def run() -> None:
        begun.append(1)
        assert small.wait(90)

    pool.submit(lambda: large.wait(90), 200)
    for _ in range(6):
        pool.submit(run, 10)
    assert not launch.ended(lambda: bool(begun), 0.1)
    large.set()
    assert launch.ended(lambda: len(begun) == 6)
    small.set()
    assert launch.ended(lambda: pool._running == 0)


def test_no_task_is_lost_if_no_thread_can_be_started_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, large, done = ElasticPool(4, 100, 1), threading.Event(), []
    pool.submit(lambda: large.wait(90), 200)
    for number in range(5):
        pool.submit(lambda number=number: done.append(number), 10)
    monkeypatch.setattr(pool, "_grow", lambda: 1 / 0)
    large.set()
    assert launch.ended(lambda: pool._running == 0)
    assert done == [0, 1, 2, 3, 4]
