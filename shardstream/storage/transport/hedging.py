"""Slow reads are sent a second time, on another connection; the answer that comes first is taken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque

from shardstream.counters.layout import slot
from shardstream.counters.recorder import add
from shardstream.storage.transport.backends import Backend, Content, Wrapper
from shardstream.storage.transport.session import ReadSession

__all__ = ["HedgePolicy", "Hedged"]

_HEDGES = slot("hedges")
_EXTRA = 0.02  # second requests, as a share of all
_SLOWEST = 0.01
_KNOWN = 128  # durations that are known of a class of sizes: the last ones
_ENOUGH = 50  # durations that must be known
_SOONEST = 0.02  # seconds


class HedgePolicy:
    """When a request counts as one of the slowest 1 %, and whether a second one may be sent for it."""

    def __init__(self) -> None:
        self.requests = self.sent = 0
        self._lock = threading.Lock()
        self._known: dict[int, deque[float]] = {}

    def delay(self, size: int) -> float | None:
        """Seconds after which a request for `size` bytes is slow; None while too little is known."""
        with self._lock:
            self.requests += 1
            known = sorted(self._known.get(size.bit_length(), ()))
        if len(known) < _ENOUGH:
            return None
        return max(_SOONEST, known[min(len(known) - 1, int(len(known) * (1 - _SLOWEST)))])

    def take(self) -> bool:
        """Whether one more request may be sent; if so, it is counted."""
        with self._lock:
            if self.sent + 1 > _EXTRA * self.requests:
                return False
            self.sent += 1
            return True

    def took(self, size: int, seconds: float) -> None:
        """Learn how long a request for `size` bytes took."""
        with self._lock:
            self._known.setdefault(size.bit_length(), deque(maxlen=_KNOWN)).append(seconds)


class Hedged(Wrapper):
    """A backend whose ranged reads are sent a second time if they are slow."""

    def __init__(self, inner: Backend, policy: HedgePolicy, session: ReadSession) -> None:
        super().__init__(inner)
        self._policy, self._session = policy, session

    async def get_range(self, path: str, start: int, size: int) -> Content:
        started = time.monotonic()
        tasks = {asyncio.ensure_future(self._inner.get_range(path, start, size))}
        try:
            done, _ = await asyncio.wait(tasks, timeout=self._policy.delay(size))
            if not done and self._policy.take():
                self._session.hedges += 1
                add(_HEDGES)
                tasks.add(asyncio.ensure_future(self._inner.get_range(path, start, size)))
            waiting = set(tasks)
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                good = [task for task in done if task.exception() is None]
                if good or not waiting:
                    found = (good or list(done))[0].result()
                    self._policy.took(size, time.monotonic() - started)
                    return found
        finally:
            for task in tasks:
                task.add_done_callback(_ask_for_error)
                task.cancel()


def _ask_for_error(task: asyncio.Task[Content]) -> None:
    """Ask for the error of a task that nobody needs any more: asyncio would log it otherwise."""
    if not task.cancelled():
        task.exception()
