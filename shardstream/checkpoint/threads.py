"""The same work for many values, in threads that also work while a program ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["in_threads"]

_THREADS = 16

T = TypeVar("T")
R = TypeVar("R")


def in_threads(work: Callable[[T], R], values: Iterable[T], most: int = _THREADS) -> list[R]:
    """The results of `work`, in order. Executors of the standard library refuse work at a program's end.

    Args:
        work: Called in several threads.
        values: An argument for each call.
        most: Threads.

    Raises:
        Exception: The first error; calls that have not begun are left out.
    """
    given = list(values)
    results: list[Any] = [None] * len(given)
    errors: list[BaseException] = []
    numbers = iter(range(len(given)))
    lock = threading.Lock()

    def run() -> None:
        while not errors:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = work(given[number])
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(most, len(given)) - 1)]
    try:
        for thread in threads:
            thread.start()
        run()
        for thread in threads:
            thread.join()
    except BaseException as error:
        errors.append(error)  # Ctrl-C: no thread begins another call
        raise
    if errors:
        raise errors[0]
    return results
