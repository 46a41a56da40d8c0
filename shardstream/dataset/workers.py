"""The worker processes of a torch DataLoader: who they are, and which epoch they are in.

A DataLoader gives each worker a copy of the dataset and tells nobody that an epoch begins. The copies
share a file without a name that is only ever appended to: a worker adds a record when it begins to
iterate, the owner when it chooses an epoch. All read the same records in the same order, and so
agree on the epoch of each iteration, whoever comes first and however workers are started.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
import weakref
from multiprocessing import context, parent_process, reduction
from typing import Any, NamedTuple

from shardstream.order.cursor import Cursor, Run

__all__ = ["Worker", "WorkerCursor", "current"]

# What happened, the DataLoader's seed, the worker, the epoch, the position.
_RECORD = struct.Struct("<BqqQQ")
_CHOSEN, _BEGUN, _BEGUN_AT = range(3)

Place = tuple[int, int]


class Worker(NamedTuple):
    """One of `size` worker processes of a DataLoader; all iterations of one have the same seed."""

    number: int
    size: int
    seed: int


def current() -> Worker | None:
    """The DataLoader worker that this process is."""
    data = sys.modules.get("torch.utils.data")
    info = None if data is None else data.get_worker_info()
    return None if info is None else Worker(info.id, info.num_workers, info.seed - info.id)


class Log:
    """The records that the copies of a dataset share."""

    def __init__(self, first: Place = (0, 0)) -> None:
        self.owner = os.getpid()
        self._hold(_nameless())
        self.choose(*first)

    def _hold(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    @property
    def shared(self) -> bool:
        """Whether this process is the owner or one of the owner's workers."""
        if os.getpid() == self.owner:
            return True
        parent = parent_process()
        return current() is not None and parent is not None and parent.pid == self.owner

    def choose(self, epoch: int, position: int) -> None:
        """The next iteration starts there."""
        self._add(_CHOSEN, 0, 0, epoch, position)

    def begin(self, worker: Worker, at: Place | None) -> Place:
        """A worker begins to iterate, from `at` if it knows better; tells where."""
        kind = _BEGUN if at is None else _BEGUN_AT
        self._add(kind, worker.seed, worker.number, *(at or (0, 0)))
        return at or self._replay()[1]

    def following(self) -> Place:
        """Where the next iteration starts."""
        return self._replay()[0]

    def busy(self) -> bool:
        """Whether the last iteration was begun by workers."""
        return self._replay()[2]

    def _add(self, *values: int) -> None:
        # One write to a file opened for appending: records of several processes never mix.
        os.write(self._fd, _RECORD.pack(*values))

    def _replay(self) -> tuple[Place, Place, bool]:
        """Where the next iteration starts, where that of the last record did, and if workers began it."""
        following = started = (0, 0)
        turns: dict[tuple[int, int], int] = {}
        groups: dict[tuple[int, int], Place] = {}
        kind = _CHOSEN
        for kind, seed, worker, *place in _RECORD.iter_unpack(
            os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        ):
            if kind == _CHOSEN:
                following = (place[0], place[1])
                continue
            # The n-th time that a worker begins belongs to the n-th iteration of its DataLoader.
            turn = turns[seed, worker] = turns.get((seed, worker), 0) + 1
            if (seed, turn) not in groups:
                groups[seed, turn] = (place[0], place[1]) if kind == _BEGUN_AT else following
                following = (groups[seed, turn][0] + 1, 0)
            started = groups[seed, turn]
        return following, started, kind != _CHOSEN

    def __getstate__(self) -> tuple[int, Any, Place]:
        fd = None if context.get_spawning_popen() is None else reduction.DupFd(self._fd)
        return self.owner, fd, self.following()

    def __setstate__(self, state: tuple[int, Any, Place]) -> None:
        owner, fd, following = state
        if fd is None:  # a copy, not on its way to a process that is being started
            self.__init__(following)  # type: ignore[misc]
        else:
            self.owner = owner
            self._hold(fd.detach())


class WorkerCursor(Cursor):
    """A cursor that goes on where the iterations of worker processes, or of their owner, left it."""

    def __init__(self) -> None:
        super().__init__()
        self._log = Log()
        self._told = False  # a worker has been told where to start: by a state or an epoch of its own

    @property
    def away(self) -> bool:
        """Whether worker processes deliver, so that nobody here knows how far they came."""
        return current() is None and self._own_log().busy()

    def place(self, epoch: int, position: int, own: bool = False) -> None:
        """Start the next iteration at `position` of `epoch`; `own`: a position of this worker alone."""
        super().place(epoch, position, own)
        if current() is None:
            self._own_log().choose(epoch, position)
        else:
            self._told = True

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at `epoch`, in all workers if the owner says so."""
        if current() is None:
            self._next = Run(*self._own_log().following())
        super().set_epoch(epoch)

    def begin(self) -> Run:
        """Start an iteration, of the same epoch in all workers."""
        worker = current()
        if worker is None:
            self._next = Run(*self._own_log().following())
            run = super().begin()
            self._own_log().choose(self._next.epoch, self._next.position)
            return run
        if self._log.shared:
            at = (self._next.epoch, self._next.position) if self._told else None
            epoch, position = self._log.begin(worker, at)
            if not self._told:
                self._next = Run(epoch, position)
        self._told = False
        return super().begin()

    def end(self, run: Run) -> None:
        """The iteration has delivered the whole epoch; a worker, whose peers may not have, stays in it."""
        if current() is None:
            super().end(run)

    def restart(self, run: Run, epoch: int, position: int, own: bool) -> None:
        """Let an iteration that has begun go on from another place."""
        super().restart(run, epoch, position, own)
        if run is self._now and current() is None:
            self._own_log().choose(self._next.epoch, self._next.position)

    def _own_log(self) -> Log:
        """The log, a new one in a process that was forked from the owner but is no worker of it."""
        if not self._log.shared:
            self._log = Log((self._next.epoch, self._next.position))
        return self._log


def _nameless() -> int:
    """A descriptor of a file that has no name, opened for appending."""
    if hasattr(os, "memfd_create"):
        import fcntl

        fd = os.memfd_create("shardstream-epochs")
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        return fd
    with tempfile.TemporaryFile("ab+", buffering=0) as file:
        return os.dup(file.fileno())
