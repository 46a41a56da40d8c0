"""How many requests at once, and which are sent a second time: one of each for a store."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Hedge", "Limit"]

_LEAST, _START, _MOST = 4, 64, 192
_GAIN = 1.05  # throughput has to grow by this, or more requests in flight only wait for each other
_STEP = 1.25
_ROUNDS = 2  # a period is as many answers as twice the limit
_HOLD = 8  # periods until it is tried again

_EXTRA = 0.02  # hedges, of all requests
_SLOWEST = 0.01
_KNOWN = 128  # the last durations of a class of sizes
_ENOUGH = 50  # of them
_SOONEST = 0.02  # seconds


class Limit:
    """Requests in flight by Little's law: more while throughput grows, fewer when the store objects.

    `now` is the limit. It is a controller, not a gate: who sends requests ahead asks it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = _START
        self._clock = clock
        self._lock = threading.Lock()
        self._best = 0.0  # bytes per second, before the last step
        self._before = _START
        self._trying = False
        self._hold = self._flying = self._most = self._answers = self._bytes = 0
        self._since = self._throttled = clock()

    def start(self) -> None:
        """A request is sent."""
        with self._lock:
            self._flying += 1
            self._most = max(self._most, self._flying)

    def end(self, size: int) -> None:
        """A request is over, with `size` bytes."""
        with self._lock:
            self._flying -= 1
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
            self._trying, self._hold, self._best = False, _HOLD, 0.0
            self._begin()

    def _judge(self) -> None:
        rate = self._bytes / max(self._clock() - self._since, 1e-6)
        full = self._most >= self.now
        if self._trying and rate < _GAIN * self._best:
            self.now, self._trying, self._hold = self._before, False, _HOLD
        elif self._hold:
            self._hold -= 1
        elif full and self.now < _MOST:
            self._before, self._best, self._trying = self.now, rate, True
            self.now = min(_MOST, int(self.now * _STEP) + 1)
        else:
            self._trying = False
        self._begin()

    def _begin(self) -> None:
        self._since, self._bytes, self._answers, self._most = self._clock(), 0, 0, self._flying


class Hedge:
    """When a request counts as one of the slowest 1 %, and whether a second may be sent for it."""

    def __init__(self) -> None:
        self.requests = self.sent = 0
        self._lock = threading.Lock()
        self._known: dict[int, deque[float]] = {}

    def delay(self, size: int) -> float | None:
        """Seconds after which a request for `size` bytes is late; None while too little is known."""
        with self._lock:
            self.requests += 1
            known = sorted(self._known.get(size.bit_length(), ()))
        if len(known) < _ENOUGH:
            return None
        return max(_SOONEST, known[min(len(known) - 1, int(len(known) * (1 - _SLOWEST)))])

    def take(self) -> bool:
        """Whether one more request is within the budget; it is then counted."""
        with self._lock:
            if self.sent + 1 > _EXTRA * self.requests:
                return False
            self.sent += 1
            return True

    def took(self, size: int, seconds: float) -> None:
        """A request for `size` bytes took so long."""
        with self._lock:
            self._known.setdefault(size.bit_length(), deque(maxlen=_KNOWN)).append(seconds)
