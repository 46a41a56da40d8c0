"""The epochs of a dataset, on which its copies in the worker processes of torch DataLoaders agree.

A DataLoader gives each worker a copy of the dataset, and does not say when an epoch begins. The copies
share a file without a name, which is made when the first process is started. In it stand the place at which
the next iteration starts, and each iteration that some of its workers have not begun yet. So the first worker
decides at which place an iteration is. The others find it there, however late and in whatever way they start.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import context, parent_process, reduction
from typing import Any, NamedTuple

from shardstream.errors import StateError
from shardstream.memory import when_dropped

__all__ = ["Epochs", "Place", "Worker", "current_worker"]

Place = tuple[int, int]

_MOST = 1024  # iterations that some workers have not begun; they never will if they were killed


class Worker(NamedTuple):
    """One of the `size` worker processes of a DataLoader."""

    number: int
    size: int


def current_worker() -> Worker | None:
    """The DataLoader worker that this process is."""
    data = sys.modules.get("torch.utils.data")
    info = None if data is None else data.get_worker_info()
    return None if info is None else Worker(info.id, info.num_workers)


@dataclass
class _State:
    following: Place
    busy: bool = False  # workers began the last iteration
    # By the DataLoader's iterator and the number of iterations that its workers began before: its place,
    # and how many workers have not begun it.
    begun: dict[tuple[int, ...], tuple[Place, int]] = field(default_factory=dict)


class Epochs:
    """Where iterations start, for the process that owns a dataset and for the workers that it starts."""

    def __init__(self, first: Place = (0, 0)) -> None:
        self._own(_State(first))

    def _own(self, state: _State) -> None:
        self.owner = os.getpid()
        self._state = state  # as long as there is no file
        self._file: int | None = None
        self._start: tuple[int, int] | None = None  # of this process, if it was not forked
        self._turns = 0  # iterations that this process, a worker, has begun
        self._enlist()

    def _enlist(self) -> None:
        self._lock = threading.RLock()
        _live[id(self)] = self

    def _hold(self, file: int) -> None:
        self._file = file
        self._close = weakref.finalize(self, os.close, file)

    @property
    def shared(self) -> bool:
        """Whether this process is a worker that the owner started."""
        parent = parent_process()
        return current_worker() is not None and parent is not None and parent.pid == self.owner

    def adopt(self) -> None:
        """Make this process the owner, unless it is a worker. It starts where its parent was."""
        if os.getpid() != self.owner and current_worker() is None:
            if self._file is not None:
                self._close()
            self._own(_State(self._state.following))

    def choose(self, place: Place) -> None:
        """The next iteration starts there."""
        with self._changing() as state:
            state.following, state.busy = place, False

    def take_back(self, chosen: Place, place: Place) -> None:
        """The next iteration starts at `place`, if it would start at `chosen` and no workers iterate."""
        with self._changing() as state:
            if state.following == chosen and not state.busy:
                state.following = place

    def begin(self, worker: Worker, at: Place | None) -> Place:
        """A worker begins to iterate, at `at` if that is given; returns the place."""
        if self._file is None:
            raise StateError(
                "the workers of the DataLoader do not know their epoch: the process that started them had no "
                "file descriptor left to share it; raise the limit (ulimit -n)"
            )
        # A DataLoader starts its workers one after the other, in one thread.
        thread, number = self._start or _born
        turn, self._turns = self._turns, self._turns + 1
        iteration = (thread, number - worker.number, worker.size, turn)
        with self._changing() as state:
            place, left = state.begun.pop(iteration, (None, worker.size))
            if place is None:
                place = at or state.following
                state.following, state.busy = (place[0] + 1, 0), True
            if left > 1:
                state.begun[iteration] = place, left - 1
            if len(state.begun) > _MOST:
                del state.begun[next(iter(state.begun))]
        return at or place

    def moved(self, before: int, epoch: int) -> None:
        """An iteration of epoch `before` that workers have begun goes on in another one."""
        with self._changing() as state:
            if state.busy and state.following == (before + 1, 0):
                state.following = epoch + 1, 0

    def next(self) -> tuple[Place, bool]:
        """Where the next iteration starts, and whether workers began the last one."""
        with self._changing() as state:
            return state.following, state.busy

    def share(self) -> None:
        """Be ready for a process that is about to start."""
        self.adopt()  # so that the workers of this process are its own
        with self._lock:
            if self._file is None:
                file = _nameless()
                self._save(file, self._state)
                self._hold(file)
            # A process that is no worker goes on from here.
            self._state.following = self.next()[0]

    @contextmanager
    def _changing(self) -> Iterator[_State]:
        with self._lock:
            if self._file is None:
                yield self._state
                return
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                state = self._load(self._file)
                yield state
                self._save(self._file, state)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    @staticmethod
    def _load(file: int) -> _State:
        data = os.pread(file, os.fstat(file).st_size, 0)
        following, busy, begun = json.loads(data.partition(b"\n")[0])
        waiting = {tuple(key): ((place[0], place[1]), left) for key, place, left in begun}
        return _State((following[0], following[1]), busy, waiting)

    @staticmethod
    def _save(file: int, state: _State) -> None:
        begun = [(key, place, left) for key, (place, left) in state.begun.items()]
        # One write at one place: a worker that is killed leaves the old state or the new one.
        os.pwrite(file, json.dumps((state.following, state.busy, begun)).encode() + b"\n", 0)

    def __deepcopy__(self, memo: Any) -> Epochs:
        return Epochs(self.next()[0])  # also while a process is being started

    def __getstate__(self) -> tuple[int, Any, Any, Place]:
        process = context.get_spawning_popen()
        if process is None:  # a copy
            return self.owner, None, None, self.next()[0]
        start = _starts.next(process)
        self.share()
        assert self._file is not None
        # The file must be open until the process has it, also if this object is a copy made for it.
        when_dropped(process, id, self)
        return self.owner, reduction.DupFd(self._file), start, self._state.following

    def __setstate__(self, state: tuple[int, Any, Any, Place]) -> None:
        owner, file, start, following = state
        self._own(_State(following))
        if file is not None:  # else a copy, which goes its own way
            self.owner, self._start = owner, start
            self._hold(file.detach())


class _Starts(threading.local):
    """The processes that a thread has started."""

    def __init__(self) -> None:
        self.thread, self.count = next(_threads), 0
        self._process: weakref.ref[Any] | None = None

    def next(self, process: Any = None) -> tuple[int, int]:
        """The thread and the number of a process that is being started."""
        if process is None or self._process is None or self._process() is not process:
            self.count += 1
        self._process = None if process is None else weakref.ref(process)
        return self.thread, self.count


_threads = itertools.count()
_starts = _Starts()
_born = (0, 0)  # which start of its parent this process is, if it was forked
_live: weakref.WeakValueDictionary[int, Epochs] = weakref.WeakValueDictionary()


def _before_fork() -> None:
    _starts.next()
    for reference in _live.valuerefs():
        epochs = reference()
        if epochs is not None:
            with suppress(OSError):  # a process that has no descriptor left may fork all the same
                epochs.share()


def _after_fork() -> None:
    global _born
    _born = _starts.thread, _starts.count
    for reference in _live.valuerefs():
        epochs = reference()
        if epochs is not None:
            # A thread that had the lock is not in this process.
            epochs._lock = threading.RLock()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _nameless() -> int:
    """A descriptor of a file that has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("shardstream-epochs")
    with tempfile.TemporaryFile("wb+", buffering=0) as file:
        return os.dup(file.fileno())
