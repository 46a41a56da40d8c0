"""The event loop on which all requests run: fsspec's, in a thread of its own; and how it ends."""

from __future__ import annotations

import asyncio
import atexit
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from shardstream.errors import StorageError
from shardstream.storage.transport.backends import obstore_requests

__all__ = ["send"]

T = TypeVar("T")

_END_SECONDS = 10.0  # at most, that the program's end waits for requests that it has cancelled

_running: set[Future[Any]] = set()
_tasks: set[object] = set()  # tasks that have begun on the loop and have not ended
_over: list[bool] = []


def send(work: Callable[[], Awaitable[T]]) -> Future[T]:
    """Run a coroutine on the loop, unless the program is at its end."""
    from fsspec.asyn import get_loop

    if _over:
        raise StorageError("the program is at its end: nothing is sent to a store any more")

    async def counted() -> T:
        mark = object()
        _tasks.add(mark)
        try:
            return await work()
        finally:
            _tasks.discard(mark)

    future = asyncio.run_coroutine_threadsafe(counted(), get_loop())
    _running.add(future)
    future.add_done_callback(_running.discard)
    return future


def _at_exit() -> None:
    """Cancel all requests, and wait until no thread of a store's client will call Python again."""
    _over.append(True)
    deadline = time.monotonic() + _END_SECONDS
    for future in tuple(_running):
        future.cancel()
    while (_tasks or obstore_requests()) and time.monotonic() < deadline:
        time.sleep(0.002)


def _after_fork() -> None:
    _running.clear()
    _tasks.clear()


# It runs after the threads that Python joins at its end: these may read and write until then.
atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
