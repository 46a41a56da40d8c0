"""Ranges of objects, read by many threads into memory that the caller gives."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future

from shardstream.cores import cores
from shardstream.errors import StateError, StorageError
from shardstream.storage.cancellation import Cancelled, CancelScope, current, working_for
from shardstream.storage.fetch.pool import ElasticPool
from shardstream.storage.spans import Part, spans
from shardstream.storage.store import Store

__all__ = ["RangeReader", "read_ranges"]

_REMOTE = 16, 64  # ranges on their way, at least and at most: four for a processor
_LOCAL = 4, 32  # threads, at least and at most: a parallel file system wants more than there are processors

# Closed at the end of the program: a thread that is in the code of torch then would have it abort.
# No WeakSet: Python calls its callback wherever a reader is freed, and drops a Ctrl-C that comes meanwhile.
_readers: set[RangeReader] = set()

Done = Callable[[BaseException | None], None]


def _threads(store: Store) -> int:
    processors = cores()
    (least, most), each = (_LOCAL, 2) if store.backend == "local" else (_REMOTE, 4)
    return min(max(least, each * processors), most)


def _take(turn: list[None]) -> bool:
    """Whether the caller is the first one who takes it."""
    try:
        turn.pop()
    except IndexError:
        return False
    return True


class RangeReader(contextlib.AbstractContextManager["RangeReader"]):
    """Reads ranges of objects by threads that end by themselves. Leave it as a context manager, or close it.

    Args:
        store: Where the objects are.
        threads: How many ranges are on their way at most. By default: to a remote store four times the
            processors, 16 to 64, and fewer while its adaptive limit is lower; for local files twice the
            processors, 4 to 32.
    """

    def __init__(self, store: Store, threads: int | None = None) -> None:
        self._store = store
        self._scope = CancelScope()
        most = threads or _threads(store)
        self._pool = ElasticPool(most)
        self._pool.most = lambda: max(1, min(most, store.concurrency))
        self._open: set[object] = set()  # of calls that are not done
        # The lock is taken itself, not by its condition: that one keeps it if Ctrl-C comes meanwhile.
        self._lock = threading.RLock()
        self._ended = threading.Condition(self._lock)
        self._process = os.getpid()
        _readers.add(self)

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, path: str, span: Sequence[Part], done: Done) -> None:
        """Read one range soon, as `spans` makes them.

        Args:
            path: The object.
            span: Its parts.
            done: It is called once, by the thread that has read the range, with None or with the error.
        """
        self.run(lambda: self._store.read_into(path, span), done)

    def run(self, read: Callable[[], None], done: Done) -> None:
        """Call a function that reads soon, in a thread.

        Args:
            read: It calls `read_into` of the store.
            done: It is called once, by the same thread, with None or with the error.
        """
        calls, call, turn = [(read, done)], object(), [None]
        del read, done

        def work() -> None:
            if not _take(turn):
                return  # `run` has raised
            try:
                self._call(*calls.pop())  # which then holds what they refer to alone, and lets go of it
            finally:
                self._close_call(call)

        try:
            self._open.add(call)
            with working_for(self._scope):
                self._pool.submit(work)
        except BaseException:  # Ctrl-C may come anywhere: nobody may wait for a call that nobody makes
            if _take(turn):
                calls.clear()
                self._close_call(call)
            raise

    def check_process(self, again: str) -> None:
        """Raise StateError in a forked process: the threads that read are not in it.

        Args:
            again: What makes another one, for the message.
        """
        if self._process != os.getpid():
            raise StateError(f"{self._store.url}: this was made in another process: call {again} again here")

    def _close_call(self, call: object) -> None:
        with self._lock:
            self._open.discard(call)
            self._ended.notify_all()

    def _call(self, read: Callable[[], None], done: Done) -> None:
        error: BaseException | None = None
        try:
            if self._scope.over:
                raise Cancelled
            read()
        except BaseException as caught:  # noqa: BLE001 - the caller is told
            error = caught
        done(error)

    def close(self) -> None:
        """Give up the ranges that are on their way. After it, no thread writes to their memory."""
        # Modules of a program that ends may be gone before its generators; readers were ended before.
        if os is None or self._process != os.getpid():  # after a fork: the threads are the parent's
            return
        self._scope.end()
        with self._lock:
            self._ended.wait_for(lambda: not self._open)
        _readers.discard(self)


def read_ranges(
    store: Store,
    wanted: Iterable[tuple[str, int, memoryview]],
    arrived: Callable[[str, Sequence[Part]], None] | None = None,
    threads: int | None = None,
) -> None:
    """Fill memory with ranges of objects, by many threads; returns when all is there.

    Parts with at most 256 KiB between them come in one request, and a request is for at most 8 MiB. Requests
    are tried again, limited and sent twice as all requests are.

    Args:
        store: Where the objects are.
        wanted: (path, start, view) triples: a writable, contiguous view of single bytes is filled with the
            object's bytes from `start`.
        arrived: It is called in the threads that read, with an object and the parts of it that have come. An
            error that it raises is raised here.
        threads: How many ranges are on their way at most; see `RangeReader`.

    Raises:
        StorageError: A range cannot be read. The first error ends the others. When this function returns or
            raises, no thread writes to the views any more.
    """
    by_path: dict[str, list[Part]] = {}
    for path, start, view in wanted:
        by_path.setdefault(path, []).append((start, view))
    tasks = [(path, span) for path, parts in by_path.items() for span in spans(parts)]
    if not tasks:
        return
    finished: Future[None] = Future()
    lock, left = threading.Lock(), len(tasks)

    def done(path: str, span: Sequence[Part], error: BaseException | None) -> None:
        nonlocal left
        try:
            if error is None and arrived is not None and not finished.done():
                arrived(path, span)
        except BaseException as caught:  # noqa: BLE001 - it is raised in the thread that waits
            error = caught
        with lock:
            left -= 1
            if finished.done():
                return
            if error is not None:
                finished.set_exception(error)
            elif not left:
                finished.set_result(None)

    with RangeReader(store, threads) as reader:
        for path, span in tasks:
            reader.submit(path, span, lambda error, path=path, span=span: done(path, span, error))  # type: ignore[misc]
        try:
            current().result(finished, threading.TIMEOUT_MAX)
        except CancelledError:
            raise StorageError(f"{store.url}: given up: what it was for has ended") from None


def _at_exit() -> None:
    for reader in tuple(_readers):
        reader.close()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_readers.clear)
