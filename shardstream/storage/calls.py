"""Requests to a remote store: retried, hedged, counted, and every answer checked before it is believed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shardstream.errors import CommitError, StorageError
from shardstream.storage.failures import Failure, failure_of
from shardstream.storage.pace import Hedge, Limit
from shardstream.storage.retry import Policy, policy, retried
from shardstream.storage.secrets import redact
from shardstream.storage.stores import Backend, Data, Got, Options, connect
from shardstream.storage.waits import current

__all__ = ["Remote", "Scope", "run"]

T = TypeVar("T")

_UNKNOWN = 64 << 20  # bytes that time is given for where the size of an object is not known
_GRACE = 30.0  # seconds beyond the policy's, for a machine that stands still


@dataclass
class Scope:
    """What one reader has seen: the versions of objects, and counts. May be used by many threads."""

    retries: int = 0
    hedges: int = 0
    _versions: dict[str, tuple[str, int | None]] = field(default_factory=dict)

    def check(self, path: str, version: str, total: int | None) -> None:
        """Refuse an answer from another version of an object than the one read before."""
        # One step, so that no lock is needed, which a fork could leave locked.
        was, size = self._versions.setdefault(path, (version, total))
        if (version and was and version != was) or (None not in (total, size) and total != size):
            raise Failure(
                "it was replaced while it was read: open the dataset again, "
                "and write new versions to new places"
            )

    def forget(self, path: str) -> None:
        """An object is going to be another."""
        self._versions.pop(path, None)


@dataclass
class _Pace:
    limit: Limit = field(default_factory=Limit)
    hedge: Hedge = field(default_factory=Hedge)


_paces: dict[tuple[int, str, str], _Pace] = {}


def run(
    where: str,
    work: Callable[[], Awaitable[T]],
    size: int = 0,
    scope: Scope | None = None,
    rules: Policy | None = None,
) -> T:
    """The result of `work`, which runs on fsspec's loop and is retried; StorageError says what was tried.

    It is ended where it is when the iterator is dropped that this thread works for.
    """
    from fsspec.asyn import get_loop

    rules, scope = rules or policy(), scope or Scope()

    def failed(failure: Failure, again: bool) -> None:
        scope.retries += again

    future: Future[T] = asyncio.run_coroutine_threadsafe(retried(work, rules, size, failed), get_loop())
    limit = rules.limit(size) + rules.attempt_limit(size) + _GRACE
    try:
        return current().result(future, limit)
    except Failure as error:
        failure = error
    except CancelledError:
        failure = Failure("given up: the iterator that it was for, or this process, has ended")
    except FutureTimeout:
        failure = Failure(f"not done after {limit:.0f} s", kind=TimeoutError)
    finally:
        future.cancel()
    # Outside of the handlers: what stores raised, whose texts may hold credentials, stays behind.
    raise StorageError(f"{where}: {failure}") from failure.kind(failure.reason)


class Remote:
    """The objects below a URL. Paths are appended to it; "" is the URL itself."""

    def __init__(self, url: str, options: Options, scope: Scope | None = None) -> None:
        self.url = redact(url)
        self._full, self._options = url, options
        self.scope = scope or Scope()
        self._process = 0
        self._connect()

    def _connect(self) -> tuple[Backend, str, _Pace]:
        if self._process != os.getpid():
            # After a fork the parent's connections and threads are not ours.
            self._backend, self._root = connect(self._full, self._options)
            host = self.url.partition("://")[2].partition("/")[0]
            self._pace = _paces.setdefault((os.getpid(), self._backend.name, host), _Pace())
            self._process = os.getpid()
        return self._backend, self._root, self._pace

    def __getstate__(self) -> dict[str, Any]:
        """Without connections: another process makes its own."""
        gone = ("_backend", "_root", "_pace")
        return {name: value for name, value in vars(self).items() if name not in gone} | {"_process": 0}

    @property
    def backend(self) -> str:
        """The name of what talks to the store."""
        return self._connect()[0].name

    @property
    def concurrency(self) -> int:
        """How many requests it is worth having in flight."""
        return self._connect()[2].limit.now

    def where(self, path: str) -> str:
        """A path with its root, for messages."""
        return f"{self.url.rstrip('/')}/{path}" if path else self.url

    def path(self, path: str) -> str:
        """A path as the backend takes it."""
        root = self._connect()[1]
        return f"{root.rstrip('/')}/{path}".lstrip("/" if not root.strip("/") else "") if path else root

    def get(self, path: str, most: int | None = None) -> bytes:
        """The whole object, which must have at most `most` bytes."""
        backend, _, pace = self._connect()
        full = self.path(path)

        async def work() -> Got:
            return await self._paced(pace, lambda: backend.get(full, 0, None, most))

        return bytes(run(self.where(path), work, _UNKNOWN, self.scope).data)

    def warm_up(self, path: str, connections: int) -> None:
        """Open so many connections by asking for a byte of an object; returns at once, raises nothing."""
        backend, full, rules = self._connect()[0], self.path(path), policy()
        if not backend.connects:
            return

        async def ask() -> None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(backend.get(full, 0, 1, None), rules.timeout)

        from fsspec.asyn import get_loop

        for _ in range(connections):
            asyncio.run_coroutine_threadsafe(ask(), get_loop())

    def get_range(self, path: str, start: int, size: int) -> Data:
        """At most `size` bytes from `start`; fewer at the object's end. All from one version of it."""
        backend, _, pace = self._connect()
        full = self.path(path)
        if size <= 0:
            return b""
        where = self.where(path)

        async def work() -> Got:
            got = await self._hedged(pace, size, lambda: backend.get(full, start, size, None))
            if got.total is not None or got.version:
                self.scope.check(where, got.version, got.total)
            if len(got.data) > size:
                raise Failure(f"{len(got.data)} bytes came back, {size} were asked for", transient=True)
            return got

        return run(where, work, min(size, _UNKNOWN), self.scope).data

    def size(self, path: str) -> int:
        """The object's size in bytes."""
        backend, full = self._connect()[0], self.path(path)
        found, _ = run(self.where(path), lambda: backend.head(full), scope=self.scope)
        if found is None:
            raise StorageError(f"{self.where(path)}: the store does not tell its size")
        return found

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        backend, full = self._connect()[0], self.path(path)
        try:
            run(self.where(path), lambda: backend.head(full), scope=self.scope)
        except StorageError as error:
            if isinstance(error.__cause__, (FileNotFoundError, IsADirectoryError)):
                return False
            raise
        return True

    def list(self) -> list[str]:
        """The names directly below the root, sorted."""
        backend, root = self._connect()[0], self.path("")
        try:
            names = run(self.url, lambda: backend.list(root), scope=self.scope)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        # Some stores list a directory itself, where something has been in it.
        below = (name.rstrip("/") for name in names if name.strip("/") != root.strip("/"))
        return sorted(name.rpartition("/")[2] for name in below)

    def put(self, path: str, data: bytes) -> None:
        """Write an object as a whole."""
        backend, full = self._connect()[0], self.path(path)
        self.scope.forget(self.where(path))
        run(f"writing {self.where(path)}", lambda: backend.put(full, data, False), len(data), self.scope)

    def create(self, path: str, data: bytes) -> None:
        """Write an object that must not exist yet, else CommitError."""
        backend, full = self._connect()[0], self.path(path)
        self.scope.forget(self.where(path))
        tried = 0

        async def work() -> None:
            nonlocal tried
            tried += 1
            try:
                await backend.put(full, data, True)
            except Exception as error:
                if failure_of(error).kind is not FileExistsError:
                    raise
                # It may be our own, if only the answer to an earlier attempt was lost.
                if tried == 1 or bytes((await backend.get(full, 0, None, None)).data) != data:
                    raise

        try:
            run(f"writing {self.where(path)}", work, len(data), self.scope)
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise CommitError(f"{self.where(path)} exists already") from error.__cause__
            raise

    def delete(self, path: str) -> None:
        """Delete an object; one that is missing is no error."""
        backend, full = self._connect()[0], self.path(path)
        self.scope.forget(self.where(path))
        try:
            run(f"deleting {self.where(path)}", lambda: backend.delete(full), scope=self.scope)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    async def _paced(self, pace: _Pace, call: Callable[[], Awaitable[Got]]) -> Got:
        size = 0
        pace.limit.start()
        try:
            got = await call()
            size = len(got.data)
            return got
        except Exception as error:
            if failure_of(error).slow_down:
                pace.limit.slow_down()
            raise
        finally:
            pace.limit.end(size)

    async def _hedged(self, pace: _Pace, size: int, call: Callable[[], Awaitable[Got]]) -> Got:
        """One request, and a second one beside it if it is among the slowest; what comes first is taken."""
        started = time.monotonic()
        tasks = {asyncio.ensure_future(self._paced(pace, call))}
        try:
            delay = pace.hedge.delay(size)
            done, _ = await asyncio.wait(tasks, timeout=delay)
            if not done and pace.hedge.take():
                self.scope.hedges += 1
                tasks.add(asyncio.ensure_future(self._paced(pace, call)))
            waiting = set(tasks)
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                good = [task for task in done if task.exception() is None]
                if good or not waiting:
                    got = (good or list(done))[0].result()
                    pace.hedge.took(size, time.monotonic() - started)
                    return got
        finally:
            for task in tasks:
                if not task.done():
                    task.cancel()
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.exception()  # asked for, so that nobody logs it
