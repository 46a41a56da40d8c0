"""The objects below a URL, for threads: each call waits for a request, and its failure is a StorageError."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from shardstream.counters.layout import slot, stage
from shardstream.counters.recorder import add, observe, put, span
from shardstream.errors import CommitError, StorageError
from shardstream.storage.cancellation import current
from shardstream.storage.options import Options, RequestOptions, split_options
from shardstream.storage.secrets import redact
from shardstream.storage.transport.backends import (
    DELETED_AT_ONCE,
    Backend,
    Content,
    Data,
    Entry,
    connect,
)
from shardstream.storage.transport.concurrency import AdaptiveLimit, Measured
from shardstream.storage.transport.failures import Failure
from shardstream.storage.transport.hedging import Hedged, HedgePolicy
from shardstream.storage.transport.loop import send
from shardstream.storage.transport.retry import UNKNOWN_SIZE, Retrying, retried
from shardstream.storage.transport.session import ReadSession

__all__ = ["Client", "run"]

T = TypeVar("T")

_REQUEST, _REQUEST_BYTES, _PUT = stage("request"), stage("request_bytes"), stage("put")
_IN_FLIGHT, _REMOTE_BYTES, _PUT_BYTES = slot("in_flight"), slot("remote_bytes"), slot("put_bytes")
_ERRORS, _CONCURRENCY = slot("errors"), slot("concurrency")
_AFTER = 0.002  # seconds until the connections are opened that are for later
_GRACE = 30.0  # seconds more than all tries may take, in case the machine stands still for a while


@dataclass
class _Measurements:
    """What is known of a host."""

    limit: AdaptiveLimit = field(default_factory=AdaptiveLimit)
    hedges: HedgePolicy = field(default_factory=HedgePolicy)


_hosts: dict[tuple[int, str, str], _Measurements] = {}  # by process, backend and host


def run(where: str, work: Callable[[], Awaitable[T]], options: RequestOptions, size: int = 0) -> T:
    """The result of `work`, which is tried again as `options` say; StorageError says what was tried."""
    return _result(where, lambda: retried(work, options, size), options, size)


def _result(where: str, work: Callable[[], Awaitable[T]], options: RequestOptions, size: int = 0) -> T:
    """The result of `work`, which runs on the loop and raises Failure; that becomes a StorageError.

    It is cancelled if the iterator that this thread works for is closed or dropped.
    """

    async def outcome() -> T | Failure:
        # A result, not an error: nobody asks a task for its error whose future was cancelled meanwhile.
        try:
            return await work()
        except Failure as error:
            return error

    future: Future[T | Failure] = send(outcome)
    limit = options.seconds(size) + options.attempt_seconds(size) + _GRACE
    try:
        found = current().result(future, limit)
        if not isinstance(found, Failure):
            return found
        failure = found
    except CancelledError:
        failure = Failure("given up: the iterator that it was for, or this process, has ended")
    except FutureTimeout:
        failure = Failure(f"not done after {limit:.0f} s", kind=TimeoutError)
    finally:
        future.cancel()
    if not issubclass(failure.kind, (FileNotFoundError, FileExistsError)):  # these are answers
        add(_ERRORS)
    # Outside of the handlers: what stores raised, whose texts may hold credentials, must not be the context.
    raise StorageError(f"{where}: {failure}") from failure.kind(failure.reason)


class _Connection(NamedTuple):
    """What a process has of a store: how it talks to it, where the objects are, what is known of the host."""

    backend: Backend  # one try of a request
    retrying: Backend  # the same, with retries, second requests and measurements around it
    root: str
    limit: AdaptiveLimit


class Client:
    """The objects below a URL. Paths are appended to it; "" is the URL itself. Many threads may use it."""

    def __init__(self, url: str, options: Options, session: ReadSession | None = None) -> None:
        self.url = redact(url)
        self.options, self._theirs = split_options(options)
        self.session = session or ReadSession()
        self._full = url
        self._process = 0
        self._connect()

    def _connect(self) -> _Connection:
        if self._process != os.getpid():
            # After a fork the connections and threads are those of the parent.
            backend, root = connect(self._full, self._theirs, self.options.timeouts)
            host = self.url.partition("://")[2].partition("/")[0]
            known = _hosts.setdefault((os.getpid(), backend.name, host), _Measurements())
            layers: Backend = Measured(backend, known.limit)
            if self.options.retry.hedge:
                layers = Hedged(layers, known.hedges, self.session)
            layers = Retrying(layers, self.options, self.session)
            self._connection = _Connection(backend, layers, root, known.limit)
            self._process = os.getpid()
        return self._connection

    def __getstate__(self) -> dict[str, Any]:
        """Without connections: another process makes its own."""
        return {name: value for name, value in vars(self).items() if name != "_connection"} | {"_process": 0}

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self._connect().backend.name

    @property
    def conditional(self) -> bool:
        """Whether of many that create an object only one succeeds."""
        return self._connect().backend.conditional

    @property
    def concurrency(self) -> int:
        """How many requests at a time are worth it."""
        return self._connect().limit.now

    def where(self, path: str) -> str:
        """A path with its root, for messages."""
        return f"{self.url.rstrip('/')}/{path}" if path else self.url

    def path(self, path: str) -> str:
        """A path as the backend takes it."""
        root = self._connect().root
        return f"{root.rstrip('/')}/{path}".lstrip("/" if not root.strip("/") else "") if path else root

    def _run(self, what: str, work: Callable[[Backend], Awaitable[T]], size: int = 0) -> T:
        retrying = self._connect().retrying
        return _result(what, lambda: work(retrying), self.options, size)

    def _read(self, what: str, work: Callable[[Backend], Awaitable[Content]], size: int) -> Content:
        """The result of a request for bytes, counted and timed as the caller sees it, with all its tries."""
        started = time.monotonic()
        add(_IN_FLIGHT)
        try:
            found = self._run(what, work, size)
        finally:
            add(_IN_FLIGHT, -1)
        current().recorder.span(_REQUEST, started, time.monotonic())
        observe(_REQUEST_BYTES, len(found.data))
        add(_REMOTE_BYTES, len(found.data))
        put(_CONCURRENCY, self._connection.limit.now)
        return found

    def _write(self, what: str, work: Callable[[Backend], Awaitable[T]], size: int) -> T:
        """Send bytes, counted and timed."""
        started = time.monotonic()
        done = self._run(what, work, size)
        span(_PUT, started, time.monotonic())
        add(_PUT_BYTES, size)
        return done

    def get(self, path: str, most: int | None = None) -> bytes:
        """The whole object, which must have at most `most` bytes."""
        full = self.path(path)
        return bytes(self._read(self.where(path), lambda store: store.get(full, most), UNKNOWN_SIZE).data)

    def warm_up(self, path: str, connections: int) -> None:
        """Open so many connections by asking for a byte of an object; returns at once.

        They are opened a moment later: what is asked for within 2 ms after this call is sent first. What goes
        wrong with them is not told.

        Raises:
            OptionError: The options do not fit the store, or its package is missing.
            StorageError: There is no client for the store, or the program is at its end.
        """
        backend, full = self._connect().backend, self.path(path)
        if not backend.connects:
            return

        async def ask() -> None:
            await asyncio.sleep(_AFTER)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(backend.get_range(full, 0, 1), self.options.attempt_seconds(0))

        for _ in range(connections):
            send(ask)

    def get_range(self, path: str, start: int, size: int) -> Data:
        """At most `size` bytes from `start`; fewer at the object's end. All from one version of it."""
        if size <= 0:
            return b""
        full, where = self.path(path), self.where(path)
        found = self._read(where, lambda store: store.get_range(full, start, size), min(size, UNKNOWN_SIZE))
        if found.whole:
            self.session.note_whole(where)
        if found.total is not None or found.version:
            self.session.check(where, found.version, found.total)
        return found.data

    def size(self, path: str) -> int:
        """The object's size in bytes."""
        return self.version(path)[1]

    def version(self, path: str) -> tuple[str, int]:
        """(what names the object's version, or ""; its size in bytes)."""
        full = self.path(path)
        found, version = self._run(self.where(path), lambda store: store.head(full))
        if found is None:
            raise StorageError(f"{self.where(path)}: the store does not tell its size")
        return version, found

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        full = self.path(path)
        try:
            self._run(self.where(path), lambda store: store.head(full))
        except StorageError as error:
            if isinstance(error.__cause__, (FileNotFoundError, IsADirectoryError)):
                return False
            raise
        return True

    def list(self, folder: str = "") -> list[str]:
        """The names directly below the root, or below a folder of it, sorted."""
        root = self.path(folder)
        try:
            names = self._run(self.where(folder), lambda store: store.list(root))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        # Some stores list a directory itself if something has been in it.
        below = (name.rstrip("/") for name in names if name.strip("/") != root.strip("/"))
        return sorted(name.rpartition("/")[2] for name in below)

    def put(self, path: str, parts: Sequence[Data]) -> None:
        """Write an object of these parts as a whole."""
        full, where = self.path(path), self.where(path)
        self.session.forget(where)
        self._write(f"writing {where}", lambda store: store.put(full, parts), sum(map(len, parts)))

    def entries(self, folder: str = "") -> Sequence[Entry]:
        """The objects directly below the root, or below a folder of it, by name."""
        root = self.path(folder)
        try:
            found = self._run(self.where(folder), lambda store: store.entries(root))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        below = (each for each in found if each.path.strip("/") != root.strip("/"))
        return sorted(Entry(path.rpartition("/")[2], size, version) for path, size, version in below)

    def create(self, path: str, parts: Sequence[Data]) -> str:
        """Write an object that must not exist yet, else CommitError; returns its version, or ""."""
        full, size = self.path(path), sum(map(len, parts))
        return self._written_if(path, lambda store: store.create(full, parts), size, "exists already")

    def replace(self, path: str, data: bytes, version: str) -> str:
        """Write an object that must still have a version, else CommitError; returns its new version."""
        full = self.path(path)
        write = lambda store: store.replace(full, data, version)  # noqa: E731 - too long for one line
        return self._written_if(path, write, len(data), "was changed meanwhile")

    def _written_if(
        self, path: str, write: Callable[[Backend], Awaitable[str]], size: int, why_not: str
    ) -> str:
        where = self.where(path)
        self.session.forget(where)
        try:
            return self._write(f"writing {where}", write, size)
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise CommitError(f"{where} {why_not}") from error.__cause__
            raise

    def delete(self, path: str) -> None:
        """Delete an object; one that is missing is no error."""
        full, where = self.path(path), self.where(path)
        self.session.forget(where)
        try:
            self._run(f"deleting {where}", lambda store: store.delete(full))
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    def delete_many(self, paths: Sequence[str]) -> None:
        """Delete objects, many by one request where the store can; those that are missing are no error."""
        for first in range(0, len(paths), DELETED_AT_ONCE):
            full = [self.path(path) for path in paths[first : first + DELETED_AT_ONCE]]
            for path in paths[first : first + DELETED_AT_ONCE]:
                self.session.forget(self.where(path))
            what = f"deleting {len(full)} objects, such as {self.where(paths[first])}"
            try:
                self._run(what, lambda store, full=full: store.delete_many(full))  # type: ignore[misc]
            except StorageError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                # A store that minds missing objects may have left others.
                for path in paths[first : first + DELETED_AT_ONCE]:
                    self.delete(path)
