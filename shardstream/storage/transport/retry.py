"""Retries: how often, how long, with which pauses; around every request to a remote store."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from shardstream.counters.layout import slot
from shardstream.counters.recorder import add
from shardstream.storage.options import RequestOptions
from shardstream.storage.transport.backends import Backend, Content, Data, Entry, Wrapper
from shardstream.storage.transport.failures import Failure, failure_of
from shardstream.storage.transport.session import ReadSession

__all__ = ["UNKNOWN_SIZE", "Retrying", "pause_after", "retried"]

T = TypeVar("T")

UNKNOWN_SIZE = 64 << 20  # bytes for which there is time if the size of an object is not known
_ENDING = 0.5  # seconds for a try to end in when it is cancelled

_RETRIES = slot("retries")
_random = random.Random()  # the generator of the program is left alone


def pause_after(options: RequestOptions, attempt: int, elapsed: float, retry_after: float | None) -> float:
    """Seconds to wait after failed try number `attempt`, from 1, `elapsed` seconds after the start."""
    retry = options.retry
    drawn = _random.uniform(0, min(retry.longest_pause, retry.pause * 2**attempt))
    if attempt == retry.attempts - 1:
        drawn = max(drawn, options.span - elapsed)
    return max(drawn, retry_after or 0.0)


async def retried(
    call: Callable[[], Awaitable[T]],
    options: RequestOptions,
    size: int = 0,
    failed: Callable[[Failure, bool], None] = lambda failure, again: None,
) -> T:
    """The result of `call`, tried again if that may help; raises Failure, which says what was tried.

    size: bytes that are sent or asked for.  failed: is told of each failure, and whether another try follows.
    """

    async def outcome() -> T | Failure:
        # A result, not an error: nobody asks for the error of a task that fails while it is cancelled.
        try:
            return await call()
        except Exception as error:  # noqa: BLE001 - stores raise what they like
            return failure_of(error)

    started = time.monotonic()
    limit, attempt = options.seconds(size), 0
    while True:
        attempt += 1
        left = started + limit - time.monotonic()
        try:
            found = await _within(outcome(), max(0.0, min(left, options.attempt_seconds(size))))
        except asyncio.TimeoutError as error:
            found = failure_of(error)
        if not isinstance(found, Failure):
            return found
        failure = found
        # Outside of the handler: the original, whose text may hold credentials, must not be its context.
        failure.attempts, failure.seconds = attempt, time.monotonic() - started
        pause = pause_after(options, attempt, failure.seconds, failure.retry_after)
        late = failure.seconds + pause >= limit
        more = attempt < options.retry.attempts
        again = failure.transient and more and not late
        failed(failure, again)
        if not again:
            if failure.transient and late and failure.retry_after and more:
                failure.reason += f"; it asks to wait {failure.retry_after:.0f} s, which is too long"
            raise failure
        await asyncio.sleep(pause)


async def _within(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of `work`, or TimeoutError soon after `seconds`, whatever it does when it is cancelled.

    asyncio.wait_for waits for its end, and Azure's client goes on for 20 s if it is cancelled in a handshake.
    """
    task = asyncio.ensure_future(work)
    late = False
    try:
        await asyncio.wait([task], timeout=seconds)
        late = not task.done()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_ENDING)
    if late and (not task.done() or task.cancelled()):
        raise asyncio.TimeoutError
    return task.result()


class Retrying(Wrapper):
    """A backend whose requests are tried again if that may help. Each failure is a Failure."""

    def __init__(self, inner: Backend, options: RequestOptions, session: ReadSession) -> None:
        super().__init__(inner)
        self._options, self._session = options, session

    async def get(self, path: str, most: int | None) -> Content:
        return await self._retried(partial(self._inner.get, path, most), UNKNOWN_SIZE)

    async def get_range(self, path: str, start: int, size: int) -> Content:
        return await self._retried(partial(self._inner.get_range, path, start, size), min(size, UNKNOWN_SIZE))

    async def head(self, path: str) -> tuple[int | None, str]:
        return await self._retried(partial(self._inner.head, path))

    async def put(self, path: str, parts: Sequence[Data]) -> None:
        await self._retried(partial(self._inner.put, path, parts), sum(map(len, parts)))

    async def create(self, path: str, parts: Sequence[Data]) -> str:
        return await self._written_once(path, partial(self._inner.create, path, parts), parts)

    async def replace(self, path: str, data: bytes, version: str) -> str:
        return await self._written_once(path, partial(self._inner.replace, path, data, version), [data])

    async def _written_once(
        self, path: str, write: Callable[[], Awaitable[str]], parts: Sequence[Data]
    ) -> str:
        attempts = 0

        async def attempt() -> str:
            nonlocal attempts
            attempts += 1
            try:
                return await write()
            except Exception as error:
                if failure_of(error).kind is not FileExistsError or attempts == 1:
                    raise
                # The object may be our own: an earlier try has written it, and only its answer was lost.
                found = await self._inner.get(path, None)
                if bytes(found.data) != b"".join(parts):
                    raise
                return found.version

        return await self._retried(attempt, sum(map(len, parts)))

    async def delete(self, path: str) -> None:
        await self._retried(partial(self._inner.delete, path))

    async def delete_many(self, paths: Sequence[str]) -> None:
        await self._retried(partial(self._inner.delete_many, paths))

    async def list(self, path: str) -> list[str]:
        return await self._retried(partial(self._inner.list, path))

    async def entries(self, path: str) -> Sequence[Entry]:
        return await self._retried(partial(self._inner.entries, path))

    async def _retried(self, call: Callable[[], Awaitable[T]], size: int = 0) -> T:
        return await retried(call, self._options, size, self._count)

    def _count(self, failure: Failure, again: bool) -> None:
        self._session.retries += again
        add(_RETRIES, again)
