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
