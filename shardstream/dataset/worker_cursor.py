"""A place in the epochs of a dataset, which the workers of torch DataLoaders move, too."""

from __future__ import annotations

import os

from shardstream.dataset.worker_epochs import Epochs, current_worker
from shardstream.order.cursor import Cursor, Run

__all__ = ["WorkerCursor"]


class WorkerCursor(Cursor):
    """A cursor that worker processes and their owner share: each iteration goes on after the one before."""

    def __init__(self) -> None:
        super().__init__()
        self._epochs = Epochs()
        self._told = False  # whether this worker was given a place to start at: by a state or an epoch

    @property
    def away(self) -> bool:
        """Whether worker processes deliver: this process does not know how far they came."""
        return current_worker() is None and self._mine().next()[1]

    def place(self, epoch: int, position: int, own: bool = False) -> None:
        """Start the next iteration at `position` of `epoch`; `own`: a position of this worker alone."""
        super().place(epoch, position, own)
        if current_worker() is None:
            self._mine().choose((epoch, position))
        else:
            self._told = True

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at `epoch`, in all workers if the owner says so."""
        if current_worker() is None:
            self._catch_up()
        super().set_epoch(epoch)

    def begin(self, step: int = 1) -> Run:
        """Start an iteration, of the same epoch in all workers."""
        worker = current_worker()
        if worker is None:
            self._catch_up()
            run = super().begin(step)
            self._mine().choose((self._next.epoch, self._next.position))
            return run
        if self._epochs.shared:
            at = (self._next.epoch, self._next.position) if self._told else None
            epoch, position = self._epochs.begin(worker, at)
            if not self._told:
                self._next = Run(epoch, position)
        self._told = False
        return super().begin(step)

    def end(self, run: Run) -> None:
        """The iteration has delivered the whole epoch; a worker, whose peers may not have, stays in it."""
        if current_worker() is None:
            super().end(run)

    def leave(self, run: Run) -> None:
        """The iteration is closed or dropped. A worker does not know what became of what it gave."""
        if current_worker() is not None or os.getpid() != self._epochs.owner:
            return
        before = self._next
        super().leave(run)
        if self._next is not before:
            after = self._next
            self._epochs.take_back((before.epoch, before.position), (after.epoch, after.position))

    def restart(self, run: Run, epoch: int, position: int, own: bool) -> None:
        """Let an iteration that has begun go on from another place."""
        before = run.epoch
        super().restart(run, epoch, position, own)
        if current_worker() is not None:
            if self._epochs.shared:
                self._epochs.moved(before, epoch)
        elif run is self._now:
            self._mine().choose((self._next.epoch, self._next.position))

    def _catch_up(self) -> None:
        """If workers began the last iteration, go on after it."""
        place, busy = self._mine().next()
        if busy or place != (self._next.epoch, self._next.position):
            self.forget()
            self._next = Run(*place)

    def _mine(self) -> Epochs:
        """The epochs of this process, its own if it was forked from the owner and is no worker of it."""
        self._epochs.adopt()
        return self._epochs
