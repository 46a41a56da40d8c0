"""The process that reads for another process: it makes the batches that its consumer asks for.

The processes send messages over a pair of Unix sockets. Batches lie in memory that both share.
"""

from __future__ import annotations

import copy
import os
import pickle
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from shardstream.counters.page import begin, end
from shardstream.read.engine.stats import Stats
from shardstream.read.handoff import messages
from shardstream.read.handoff.shared_memory import Writer

__all__ = ["Produce", "portable", "serve"]

Produce = Callable[[int, int, Stats], Generator[Any, None, None]]

_DEPTH = 16  # how many batches may wait for the consumer
_TIMINGS = 0.25  # seconds after which the consumer gets the histograms again


class _Left(BaseException):  # a BaseException, so that user code does not catch it
    """The consumer does not need the run any more. This is no error."""


class _Consumer:
    """What the consumer asked for.

    A thread listens, so that the end of the consumer is noticed at any time. The main thread makes the
    batches of a run. It is interrupted if the consumer does not need the run any more.

    Args:
        theirs: The socket.
        memory: Where batches are written.
        ahead: How many bytes of batches may wait for the consumer.
    """

    def __init__(self, theirs: socket.socket, memory: Writer, ahead: int) -> None:
        self._socket, self._memory, self._most = theirs, memory, ahead
        self._condition = threading.Condition()
        self._wanted: tuple[int, int, int] | None = None
        self._ahead: deque[int] = deque()  # the bytes of each batch that waits for the consumer
        self._making = 0  # the run of which a batch is being made, or 0
        self._parent = os.getppid()
        signal.signal(signal.SIGUSR1, self._interrupt)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        # A fork of the consumer may keep the socket open. So look at the parent's process id, too.
        while os.getppid() == self._parent:
            if not select.select([self._socket], [], [], 1.0)[0]:
                continue
            try:
                data = self._socket.recv(messages.PACKET)
            except OSError:
                data = b""
            if not data:
                break
            kind, run, epoch, position = messages.ORDER.unpack_from(data)
            if kind == messages.STOP:
                break
            with self._condition:
                for (segment,) in messages.FREED.iter_unpack(data[messages.ORDER.size :]):
                    self._memory.give_back(segment)
                self._memory.limit_to(max(0, self._most - sum(self._ahead)))
                if kind == messages.RUN:
                    self._wanted = (run, epoch, position)
                    self._ahead.clear()
                elif kind == messages.LEAVE and run == self._run():
                    self._wanted = None
                elif kind == messages.TAKEN and run == self._run() and self._ahead:
                    self._ahead.popleft()
                self._condition.notify()
                left = self._making not in (0, self._run())
            if left:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        end()
        os._exit(0)

    def _interrupt(self, number: int, frame: object) -> None:
        # This runs between two instructions of the main thread, which may hold the lock. So take no lock
        # here.
        if self._making not in (0, self._run()):
            self._making = 0
            raise _Left

    def batches(self, run: int, built: Generator[Any, None, None]) -> Generator[Any, None, None]:
        """The batches of a run, each when there is room for it. Raises _Left if another run is asked for."""
        while True:
            self._room(run)
            self._making = run
            try:
                if self._run() != run:
                    raise _Left
                batch = next(built)
            except StopIteration:
                return
            finally:
                self._making = 0
            yield batch

    def next(self, after: int) -> tuple[int, int, int]:
        """Wait until a run other than `after` is asked for; returns (run, epoch, position)."""
        with self._condition:
            self._condition.wait_for(lambda: self._wanted is not None and self._wanted[0] != after)
            assert self._wanted is not None
            return self._wanted

    def _room(self, run: int) -> None:
        """Wait until there is room for a batch. Raises _Left if the consumer asks for another run."""
        ahead = self._ahead
        with self._condition:
            self._condition.wait_for(
                lambda: self._run() != run or not ahead or (len(ahead) < _DEPTH and sum(ahead) < self._most)
            )
            if self._run() != run:
                raise _Left

    def _run(self) -> int:
        return 0 if self._wanted is None else self._wanted[0]

    def put(self, kind: int, run: int, value: Any) -> None:
        """Send a value to the consumer."""
        with self._condition:  # the thread that listens uses the memory, too
            message, file = self._memory.put(value)
            if run == self._run():
                self._ahead.append(message.capacity)
            self._memory.limit_to(max(0, self._most - sum(self._ahead)))
        self._send(messages.KIND.pack(kind, run) + message.to_bytes(), file)

    def count(self, counts: dict[str, dict[str, int]]) -> None:
        """Add the memory that is shared with the consumer to the bytes of an iteration, `counts`."""
        shared = counts.setdefault("prefetch", {"limit": 0})
        shared["limit"] += self._most
        shared |= {"shared memory": sum(self._ahead), "idle shared memory": self._memory.idle}

    def end(self, run: int, timings: Any) -> None:
        """Say that a run is over, and how long its stages took."""
        self.put(messages.END, run, timings)

    def _send(self, data: bytes, file: int | None) -> None:
        try:
            socket.send_fds(self._socket, [data], [] if file is None else [file])
        except (BrokenPipeError, ConnectionResetError):
            end()
            os._exit(0)  # the consumer has ended, and the thread that listens is about to exit, too
        finally:
            if file is not None:
                os.close(file)


def serve(theirs: socket.socket, what: tuple[Produce, int]) -> None:
    """The main loop of the process.

    Args:
        theirs: The socket.
        what: The function that makes batches, and how many bytes of batches may wait for the consumer.
    """
    begin("reader")
    produce, ahead = what
    consumer = _Consumer(theirs, Writer(ahead), ahead)
    run = 0
    while True:
        run, epoch, position = consumer.next(run)
        stats = Stats(delivers=False)
        sent = 0.0
        built = produce(epoch, position, stats)
        try:
            for batch in consumer.batches(run, built):
                counts = stats.counts() | {"tiers": stats.tiers, "memory": copy.deepcopy(stats.memory)}
                consumer.count(counts["memory"])
                timings = None
                if time.monotonic() > sent + _TIMINGS:  # they take longer than the counts
                    timings, sent = stats.recorder.sparse(), time.monotonic()
                consumer.put(messages.BATCH, run, (batch, counts, timings))
                del batch
            consumer.end(run, stats.recorder.sparse())
        except _Left:
            continue
        except Exception as error:  # noqa: BLE001 - raised again by the consumer
            consumer.put(messages.ERROR, run, portable(error))
        finally:
            built.close()


def portable(error: Exception) -> Exception:
    """The error itself; if it cannot be pickled, a RuntimeError with its type and message."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
