"""A whole read engine in a process of its own, for training loops that hold the GIL.

This file is the side of the consumer, and `serve.py` is the other side. The other process makes batches
ahead, up to a limit in bytes. It ends when the process of the consumer ends.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import socket
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any

from shardstream.counters.layout import slot, stage
from shardstream.counters.recorder import put
from shardstream.errors import OptionError, StorageError
from shardstream.read.engine.stats import Stats
from shardstream.read.handoff import child_process, messages
from shardstream.read.handoff.serve import Produce, serve
from shardstream.read.handoff.shared_memory import Message, Reader

__all__ = ["ReadingProcess"]

_WAIT, _STEP, _WAITING = stage("wait"), stage("step"), slot("waiting_since")
_STOP_TIMEOUT = 1.0  # seconds until a process that does not end is killed
_LOOK = 5.0  # seconds between looks at whether the other process lives


class ReadingProcess:
    """Runs `produce(epoch, position, stats)` in another process.

    The process starts with the first stream, serves one stream after the other, and ends with this object.
    There is no deadline for a batch, as long as the process lives: the engine in it has deadlines of its own.
    A fork of this process starts another process.

    Args:
        produce: Gives the batches from a position of an epoch on. It must be picklable.
        ahead: How many bytes of batches may wait for the consumer.
    """

    def __init__(self, produce: Produce, ahead: int) -> None:
        self._produce, self._ahead = produce, ahead
        self._run = 0
        self._close: Callable[[], object] | None = None
        _alive.add(self)

    def stream(self, epoch: int, position: int, stats: Stats) -> Generator[Any, None, None]:
        """The batches from `position` of `epoch` on.

        Args:
            epoch: The number of the epoch.
            position: The first position.
            stats: The counters of the loader, to which those of the other process are added.

        Raises:
            OptionError: Another stream was begun meanwhile.
            StorageError: The other process has ended.
            Exception: Any error of the other process is raised here.
        """
        if self._close is None:
            self._start()
        self._run += 1
        run, process, before = self._run, os.getpid(), copy.copy(stats)
        timings = stats.recorder.copy()
        waited, given = stats.wait_seconds, 0.0
        self._send(messages.ORDER.pack(messages.RUN, run, epoch, position))
        try:
            while run == self._run:
                started = time.monotonic()
                if given:
                    stats.recorder.span(_STEP, given, started)
                put(_WAITING, started)
                kind, value = self._take(run)
                ended = time.monotonic()
                put(_WAITING, 0)
                stats.recorder.span(_WAIT, started, ended)
                waited += ended - started
                if kind == messages.END:
                    stats.wait_seconds = waited
                    stats.recorder.continue_with(timings, value)
                    return
                if kind == messages.ERROR:
                    raise value
                batch, counts, theirs = value
                stats.continue_with(before, counts, waited)
                if theirs is not None:
                    stats.recorder.continue_with(timings, theirs)
                del value
                given = time.monotonic()
                yield batch
                del batch
            raise OptionError("engine='process' serves one iteration at a time, and a later one has begun")
        finally:
            if os.getpid() == process:
                self._send(messages.ORDER.pack(messages.LEAVE, run, 0, 0))

    def close(self) -> None:
        """End the process."""
        if self._close is not None:
            self._close()
            self._close = None

    def disown(self) -> None:
        """Let go of the other process: it belongs to the parent of this process, which is a fork."""
        if self._close is not None:
            self._socket.close()  # a copy: while it is open, the other process does not see its consumer end
            self._process.returncode = 0  # subprocess must not wait for it: it is no child of this process
            self._close = None

    def _start(self) -> None:
        process, ours = child_process.start(serve, (self._produce, self._ahead))
        ours.settimeout(_LOOK)
        self._socket, self._memory, self._process = ours, Reader(), process
        self._close = weakref.finalize(self, _end, ours, process, os.getpid())

    def _take(self, run: int) -> tuple[int, Any]:
        """The next message of a run. Tells the other process that it arrived, and which segments are free."""
        freed = self._memory.freed
        try:
            found = self._receive(run)
            done = b"".join(messages.FREED.pack(freed.popleft()) for _ in range(len(freed)))
            self._send(messages.ORDER.pack(messages.TAKEN, run, 0, 0) + done)
        except BaseException:
            # A message may be half read, or a segment may belong to neither process. Only a restart is safe.
            self.close()
            raise
        return found

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # `_receive` fails, too, and says more
            self._socket.sendall(data)

    def _receive(self, run: int) -> tuple[int, Any]:
        """The kind and the value of the next message of a run. Messages of other runs are dropped."""
        while True:
            try:
                data, files, _, _ = socket.recv_fds(self._socket, messages.PACKET, 1)
            except TimeoutError:
                if self._process.poll() is None:
                    continue
                data, files = b"", []  # it has ended, but a process that it started still has its socket
            except OSError:
                data, files = b"", []
            if not data:
                with contextlib.suppress(child_process.TimeoutExpired):
                    self._process.wait(_STOP_TIMEOUT)
                code = self._process.returncode
                why = "was it out of memory?" if code == -signal.SIGKILL else "it may have printed why"
                raise StorageError(f"the loader's process ended unexpectedly (exit code {code}); {why}")
            kind, number = messages.KIND.unpack_from(data)
            body = data[messages.KIND.size :]
            message = Message.from_bytes(body) if body else None
            value = None if message is None else self._memory.get(message, files[0] if files else None)
            if number == run:
                return kind, value


_alive: weakref.WeakSet[ReadingProcess] = weakref.WeakSet()


def _after_fork() -> None:
    for process in list(_alive):
        process.disown()


os.register_at_fork(after_in_child=_after_fork)


def _end(ours: socket.socket, process: child_process.Child[bytes], pid: int) -> None:
    if os.getpid() != pid:
        return  # in a fork: the process belongs to the parent
    with contextlib.suppress(OSError):
        ours.sendall(messages.ORDER.pack(messages.STOP, 0, 0, 0))
    ours.close()
    try:
        process.wait(_STOP_TIMEOUT)
    except child_process.TimeoutExpired:
        process.kill()
        process.wait()
