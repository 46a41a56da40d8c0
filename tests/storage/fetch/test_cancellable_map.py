"""A function of many items: in order, with help, and given up when the scope ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from shardstream.storage.cancellation import Cancelled, CancelScope, working_for
from shardstream.storage.fetch.cancellable_map import cancellable_map


class Threads:
    """So many threads, each for one call."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, 0

    def offer(self, call: Callable[[], object]) -> bool:
        if self.asked == self.count:
            return False
        self.asked += 1
        threading.Thread(target=call).start()
        return True


def slow(number: int) -> int:
    time.sleep(0.003)
    return number * 2


@pytest.mark.parametrize("threads", [None, 0, 1, 5])
def test_results_are_in_order(threads: int | None) -> None:
    scope = CancelScope()
    scope.idle_threads = None if threads is None else Threads(threads)
    with working_for(scope):
        assert cancellable_map(slow, range(40)) == list(range(0, 80, 2))
        assert cancellable_map(slow, []) == []
    assert threads is None or scope.idle_threads.asked == threads  # type: ignore[union-attr]


@pytest.mark.parametrize("threads", [None, 0, 5])
def test_the_first_error_is_raised_behind_all_results_in_front_of_it(threads: int | None) -> None:
    def some(number: int) -> int:
        time.sleep(0.001 * (40 - number) if threads else 0.001)
        if number in (17, 18, 30):
            raise ValueError(number)
        return number

    for _ in range(5):
        scope, made = CancelScope(), list[int]()
        scope.idle_threads = None if threads is None else Threads(threads)
        with working_for(scope), pytest.raises(ValueError, match="17"):
            cancellable_map(some, range(40), made)
        assert made == list(range(17))


@pytest.mark.parametrize("threads", [None, 0, 5])
def test_it_ends_between_two_items_when_nobody_wants_it(threads: int | None) -> None:
    scope, done = CancelScope(), []
    scope.idle_threads = None if threads is None else Threads(threads)

    def some(number: int) -> None:
        time.sleep(0.01)
        done.append(number)
        if len(done) == 10:
            scope.end()

    with working_for(scope), pytest.raises(Cancelled):
        cancellable_map(some, range(1000))
    assert len(done) <= 10 + (threads or 0)


def test_help_that_comes_late_is_not_waited_for() -> None:
    offered: list[Callable[[], object]] = []

    class Busy:
        def offer(self, call: Callable[[], object]) -> bool:
            offered.append(call)
            return True

    scope = CancelScope()
    scope.idle_threads = Busy()
    with working_for(scope):
        assert cancellable_map(slow, range(10)) == list(range(0, 20, 2))
    assert offered
    for call in offered:
        call()
