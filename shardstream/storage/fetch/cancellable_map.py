"""A function of many items, shared with idle threads, and given up when the scope of the thread has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shardstream.storage.cancellation import Cancelled, CancelScope, IdleThreads, current

__all__ = ["cancellable_map"]

S = TypeVar("S")
T = TypeVar("T")

_ALONE = 0.002  # seconds of work after which other threads are asked to help


def cancellable_map(
    function: Callable[[S], T], items: Sequence[S], results: list[T] | None = None
) -> list[T]:
    """`function` of each item, in order. If the items take long, idle threads of the scope help.

    Args:
        function: It is called once for each item, by any thread.
        items: Its arguments.
        results: The list to append to. If a call raises, it has the results of all items before that one.

    Returns:
        `results`, or a new list.

    Raises:
        Cancelled: The scope of this thread has ended.
    """
    results = [] if results is None else results
    scope = current()
    if scope.idle_threads is None:
        for item in items:
            if scope.over:
                raise Cancelled
            results.append(function(item))
        return results
    until = time.monotonic() + _ALONE
    for number, item in enumerate(items, 1):
        if scope.over:
            raise Cancelled
        results.append(function(item))
        if time.monotonic() > until and number + 1 < len(items):
            _map_with_help(function, items[number:], results, scope, scope.idle_threads)
            break
    return results


def _map_with_help(
    function: Callable[[S], T],
    items: Sequence[S],
    results: list[T],
    scope: CancelScope,
    idle_threads: IdleThreads,
) -> None:
    found: list[Any] = [None] * len(items)
    failed: dict[int, BaseException] = {}
    turns = iter(range(len(items)))  # taking the next one is atomic
    working: list[threading.Lock] = []  # one of each thread, which has it while it works

    def work() -> None:
        own = threading.Lock()
        with own:
            # A thread that begins after the end finds nothing to do. So nobody waits for threads that did not
            # begin.
            working.append(own)
            # An item that was taken is always finished: then the first item that fails is always the same.
            while not failed and not scope.over and (turn := next(turns, None)) is not None:
                try:
                    found[turn] = function(items[turn])
                except BaseException as error:  # noqa: BLE001  # the thread that called the map raises it
                    failed[turn] = error

    for _ in items[1:]:
        if not idle_threads.offer(work):
            break
    work()
    for lock in tuple(working):
        lock.acquire()
    first = min(failed, default=None)
    if first is not None:
        results += found[:first]
        raise failed[first]
    if scope.over:
        raise Cancelled
    results += found
