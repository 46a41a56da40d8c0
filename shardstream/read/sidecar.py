"""A whole read engine in a process of its own, for training loops that hold the GIL.

The consumer and the sidecar speak over a pair of Unix sockets; batches lie in shared memory (ring.py).
The sidecar runs ahead until so many batches are not taken, and ends when the consumer's process does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any

from shardstream.errors import OptionError, StorageError
from shardstream.read.engine import Stats
from shardstream.read.ring import Message, Reader, Writer

__all__ = ["Sidecar", "portable"]

Produce = Callable[[int, int, Stats], Generator[Any, None, None]]

_DEPTH = 16  # batches that are made and not taken
_STOP_TIMEOUT = 5.0
_PACKET = 1 << 16
_BATCH, _END, _ERROR = range(3)
_KIND = struct.Struct("<BI")
_RUN, _TAKEN, _LEAVE, _STOP = range(4)
_ORDER = struct.Struct("<BIQQ")
_FREED = struct.Struct("<I")


class Sidecar:
    """Runs `produce(epoch, position, stats)`, which must be picklable, in another process.

    The process starts with the first stream, serves one after the other, and ends with this object.
    """

    def __init__(self, produce: Produce, deadline: float) -> None:
        self._produce, self._deadline = produce, deadline
        self._run = 0
        self._pid = 0
        self._close: Callable[[], object] | None = None

    def stream(self, epoch: int, position: int, stats: Stats) -> Generator[Any, None, None]:
        """The batches from `position` of `epoch` on; errors of the other process are raised here."""
        if self._close is None or self._pid != os.getpid():
            self._start()
        self._run += 1
        run, freed, before = self._run, self._ring.freed, dataclasses.replace(stats)
        waited = stats.wait_seconds
        self._send(_ORDER.pack(_RUN, run, epoch, position))
        try:
            while run == self._run:
                started = time.monotonic()
                kind, value = self._receive(run)
                done = b"".join(_FREED.pack(freed.popleft()) for _ in range(len(freed)))
                self._send(_ORDER.pack(_TAKEN, run, 0, 0) + done)
                waited += time.monotonic() - started
                if kind == _END:
                    return
                if kind == _ERROR:
                    raise value
                batch, counts = value
                for name, count in counts.items():
                    known = getattr(before, name)
                    setattr(stats, name, count if isinstance(count, dict) else known + count)
                stats.wait_seconds = waited
                del value
                yield batch
                del batch
            raise OptionError("engine='process' serves one iteration at a time, and a later one has begun")
        finally:
            self._send(_ORDER.pack(_LEAVE, run, 0, 0))

    def close(self) -> None:
        """End the process."""
        if self._close is not None:
            self._close()
            self._close = None

    def _start(self) -> None:
        # Not a fork: this process has threads. Not a bare command: what the user wrote in the main
        # module must be found again.
        context = multiprocessing.get_context("spawn")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = context.Process(
            target=_serve, args=(theirs, self._produce), name="shardstream-loader", daemon=True
        )
        try:
            process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            ours.close()
            raise OptionError(
                f"engine='process' sends the dataset with its transform, and collate, to another process: "
                f"{error}. Use functions that are defined at the top of a module"
            ) from error
        finally:
            theirs.close()
        ours.settimeout(self._deadline)
        self._socket, self._ring, self._process = ours, Reader(), process
        self._pid = os.getpid()
        self._close = weakref.finalize(self, _end, ours, process, self._pid)

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # receiving then says more
            self._socket.sendall(data)

    def _receive(self, run: int) -> tuple[int, Any]:
        """What comes next of a run, and its value; what is left of others is passed over."""
        while True:
            try:
                data, files, _, _ = socket.recv_fds(self._socket, _PACKET, 1)
            except TimeoutError:
                raise StorageError(
                    f"no batch from the loader's process for {self._deadline:.0f} s; does the storage answer?"
                ) from None
            except OSError:
                data, files = b"", []
            if not data:
                self._process.join(_STOP_TIMEOUT)
                code = self._process.exitcode
                self.close()
                raise StorageError(
                    f"the loader's process ended unexpectedly (exit code {code}); was it out of memory?"
                )
            kind, number = _KIND.unpack_from(data)
            body = data[_KIND.size :]
            message = Message.from_bytes(body) if body else None
            value = None if message is None else self._ring.get(message, files[0] if files else None)
            if number == run:
                return kind, value


def _end(ours: socket.socket, process: Any, pid: int) -> None:
    if os.getpid() != pid:
        return  # a fork: the process is its parent's
    with contextlib.suppress(OSError):
        ours.sendall(_ORDER.pack(_STOP, 0, 0, 0))
    ours.close()
    process.join(_STOP_TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join(_STOP_TIMEOUT)
    process.close()


class _Left(Exception):  # noqa: N818 - no error: the consumer asks for something else
    """The consumer no longer wants the run."""


class _Orders:
    """What the consumer said, read by a thread so that its end is noticed whatever is being done."""

    def __init__(self, theirs: socket.socket, ring: Writer) -> None:
        self._socket, self._ring = theirs, ring
        self._condition = threading.Condition()
        self._wanted: tuple[int, int, int] | None = None
        self._taken = 0
        self._parent = os.getppid()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        # A fork of the consumer may keep its socket open: its end shows in the parent's number, too.
        while os.getppid() == self._parent:
            if not select.select([self._socket], [], [], 1.0)[0]:
                continue
            try:
                data = self._socket.recv(_PACKET)
            except OSError:
                data = b""
            if not data:
                break
            kind, run, epoch, position = _ORDER.unpack_from(data)
            if kind == _STOP:
                break
            with self._condition:
                for (segment,) in _FREED.iter_unpack(data[_ORDER.size :]):
                    self._ring.give_back(segment)
                if kind == _RUN:
                    self._wanted, self._taken = (run, epoch, position), 0
                elif kind == _LEAVE and run == self._run():
                    self._wanted = None
                elif self._wanted is not None and run == self._wanted[0]:
                    self._taken += 1
                self._condition.notify()
        os._exit(0)

    def next(self, after: int) -> tuple[int, int, int]:
        """The run to make, as soon as one other than `after` is wanted."""
        with self._condition:
            self._condition.wait_for(lambda: self._wanted is not None and self._wanted[0] != after)
            assert self._wanted is not None
            return self._wanted

    def room(self, run: int, made: int) -> None:
        """Wait until the consumer has taken enough; _Left if it wants another run."""
        with self._condition:
            self._condition.wait_for(lambda: self._run() != run or made - self._taken < _DEPTH)
            if self._run() != run:
                raise _Left

    def _run(self) -> int:
        return 0 if self._wanted is None else self._wanted[0]

    def put(self, kind: int, run: int, value: Any) -> None:
        """Send a value to the consumer."""
        with self._condition:  # the ring is the listener's, too
            message, file = self._ring.put(value)
        data = _KIND.pack(kind, run) + message.to_bytes()
        try:
            socket.send_fds(self._socket, [data], [] if file is None else [file])
        finally:
            if file is not None:
                os.close(file)

    def end(self, run: int) -> None:
        """Say that a run is over."""
        self._socket.sendall(_KIND.pack(_END, run))


def _serve(theirs: socket.socket, produce: Produce) -> None:
    """The sidecar's main loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the consumer, which ends this process
    orders = _Orders(theirs, Writer())
    run = 0
    while True:
        run, epoch, position = orders.next(run)
        stats, made = Stats(), 0
        built = produce(epoch, position, stats)
        try:
            for batch in built:
                orders.room(run, made)
                orders.put(_BATCH, run, (batch, dataclasses.asdict(stats)))
                made += 1
            orders.end(run)
        except _Left:
            continue
        except Exception as error:  # noqa: BLE001 - raised again by the consumer
            orders.put(_ERROR, run, portable(error))
        finally:
            built.close()


def portable(error: Exception) -> Exception:
    """The error, or one with its words where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
