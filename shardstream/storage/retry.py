"""Retries: how often, how long, with which pauses; for every request to a remote store."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from shardstream.errors import OptionError
from shardstream.storage.failures import Failure, failure_of

__all__ = ["Policy", "policy", "retried"]

T = TypeVar("T")

_MOST_ATTEMPTS = 6


@dataclass(frozen=True)
class Policy:
    """At most `attempts` within `deadline` seconds, each ended when nothing came for `timeout`.

    pause, longest: seconds; before attempt n + 1 the pause is random, up to pause * 2 ** n.
    span: the last attempt is not made before so many seconds, so that a server may be restarted.
    slowest: bytes per second; what is large has so much more time.
    """

    attempts: int = _MOST_ATTEMPTS
    deadline: float = 60.0
    timeout: float = 10.0
    pause: float = 0.25
    longest: float = 8.0
    span: float = 8.0
    slowest: int = 64 << 10

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= _MOST_ATTEMPTS:
            raise OptionError(f"attempts={self.attempts!r} must be 1 to {_MOST_ATTEMPTS}")
        for name in ("deadline", "timeout", "pause", "longest", "slowest"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name}={getattr(self, name)!r} must be greater than 0")
        if not 0 <= self.span <= self.deadline:
            raise OptionError(f"span={self.span!r} must be 0 to deadline={self.deadline!r}")

    def limit(self, size: int) -> float:
        """Seconds for all attempts at something of `size` bytes."""
        return self.deadline + size / self.slowest

    def attempt_limit(self, size: int) -> float:
        """Seconds for one attempt."""
        return self.timeout + size / self.slowest

    def wait(self, attempt: int, elapsed: float, retry_after: float | None) -> float:
        """Seconds to wait after failed attempt number `attempt`, from 1."""
        drawn = random.uniform(0, min(self.longest, self.pause * 2**attempt))
        if attempt == self.attempts - 1:
            drawn = max(drawn, self.span - elapsed)
        return max(drawn, retry_after or 0.0)


_policy = Policy()


def policy() -> Policy:
    """The policy of this process."""
    return _policy


async def retried(
    call: Callable[[], Awaitable[T]],
    rules: Policy,
    size: int = 0,
    failed: Callable[[Failure, bool], None] = lambda failure, again: None,
) -> T:
    """The result of `call`, tried again where that may help; raises Failure that says what was tried.

    failed: is told of each failure, and whether it is going to be tried again.
    """
    started = time.monotonic()
    attempt = 0
    while True:
        attempt += 1
        left = started + rules.limit(size) - time.monotonic()
        try:
            return await asyncio.wait_for(call(), max(0.0, min(left, rules.attempt_limit(size))))
        except Exception as error:  # noqa: BLE001 - stores raise what they like
            failure = failure_of(error)
        # Outside of the handler: the original, whose text may hold credentials, must not be its context.
        failure.attempts, failure.seconds = attempt, time.monotonic() - started
        pause = rules.wait(attempt, failure.seconds, failure.retry_after)
        late = failure.seconds + pause >= rules.limit(size)
        again = failure.transient and attempt < rules.attempts and not late
        failed(failure, again)
        if not again:
            if failure.transient and late and failure.retry_after and attempt < rules.attempts:
                failure.reason += f"; it asks to wait {failure.retry_after:.0f} s, which is too long"
            raise failure
        await asyncio.sleep(pause)
