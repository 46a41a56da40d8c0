"""How many requests are sent to a store at a time: measured at its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable

from shardstream.storage.transport.backends import Backend, Content, Wrapper
from shardstream.storage.transport.failures import failure_of

__all__ = ["AdaptiveLimit", "Measured"]

_LEAST, _START, _MOST = 4, 64, 192
_GAIN = 1.05  # if throughput grows by less, more requests only wait for each other
_STEP = 1.25
_ROUNDS = 2  # a period is as many answers as twice the limit
_REST = 8  # periods until more is tried again


class AdaptiveLimit:
    """Requests in flight by Little's law: more while throughput grows, fewer when the store objects.

    `now` is the limit. It stops nobody: the code that sends requests ahead of their use reads it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = _START
        self._clock = clock
        self._lock = threading.Lock()
        self._best = 0.0  # bytes per second, before the last step
        self._before = _START
        self._trying = False
        self._rest = self._in_flight = self._most = self._answers = self._bytes = 0
        self._since = self._throttled = clock()

    def start(self) -> None:
        """A request is sent."""
        with self._lock:
            self._in_flight += 1
            self._most = max(self._most, self._in_flight)

    def end(self, size: int) -> None:
        """A request has ended, and `size` bytes came."""
        with self._lock:
            self._in_flight -= 1
            self._bytes += size
            self._answers += size > 0
            if self._answers >= _ROUNDS * self.now:
                self._judge()

    def slow_down(self) -> None:
        """The store said 429 or 503: half as many, once for all that were in flight then."""
        with self._lock:
            if self._clock() - self._throttled < 1.0:
                return
            self._throttled = self._clock()
            self.now = max(_LEAST, self.now // 2)
            self._trying, self._rest, self._best = False, _REST, 0.0
            self._begin()

    def _judge(self) -> None:
        rate = self._bytes / max(self._clock() - self._since, 1e-6)
        full = self._most >= self.now
        if self._trying and rate < _GAIN * self._best:
            self.now, self._trying, self._rest = self._before, False, _REST
        elif self._rest:
            self._rest -= 1
        elif full and self.now < _MOST:
            self._before, self._best, self._trying = self.now, rate, True
            self.now = min(_MOST, int(self.now * _STEP) + 1)
        else:
            self._trying = False
        self._begin()

    def _begin(self) -> None:
        self._since, self._bytes, self._answers, self._most = self._clock(), 0, 0, self._in_flight


class Measured(Wrapper):
    """A backend whose reads an AdaptiveLimit is told of."""

    def __init__(self, inner: Backend, limit: AdaptiveLimit) -> None:
        super().__init__(inner)
        self._limit = limit

    async def get(self, path: str, most: int | None) -> Content:
        return await self._measured(self._inner.get(path, most))

    async def get_range(self, path: str, start: int, size: int) -> Content:
        return await self._measured(self._inner.get_range(path, start, size))

    async def _measured(self, call: Awaitable[Content]) -> Content:
        size = 0
        self._limit.start()
        try:
            found = await call
            size = len(found.data)
            return found
        except Exception as error:
            if failure_of(error).slow_down:
                self._limit.slow_down()
            raise
        finally:
            self._limit.end(size)
