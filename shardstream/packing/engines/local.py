"""A worker process on this machine: what it does, and how the packer talks to it.

The workers are plain subprocesses, which exchange pickles with the packer over pipes. Multiprocessing is not
used, for three reasons. The workers do not import the __main__ of the caller, so that a script without a main
guard may pack. They are no forks of a process that may have threads. And they end by themselves when the
packer dies.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from shardstream.counters.page import end, job_name
from shardstream.errors import OptionError, ShardstreamError, StorageError
from shardstream.packing.engines.exits import exits_are_errors

_LENGTH = struct.Struct("<Q")
# Ctrl-C reaches the whole process group. Workers ignore it, since the packer ends them.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from shardstream.packing.engines.local import serve; serve()"
)
_END_TIMEOUT = 10.0
_LOOK = 0.5  # seconds until it is seen that a process has ended, where the system does not tell at once
_PIECE = 1 << 20
_SENT = (
    "with several workers the options of pack go to other processes, which do not run the main module: "
    "{error}. Give plain values, or classes and functions of a module in a file of its own; or use workers=1"
)


def _dumped(message: object) -> bytes:
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    size = _LENGTH.unpack(head)[0]
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError  # the other end died while it wrote
    return data


def _loaded(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301 - from our own child or parent only


def serve() -> None:
    """The main loop of a worker. It gets (function, job) once, then tasks, and answers each task."""
    # Answers have a descriptor of their own, so that they do not mix with what a library prints.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                inbox.put(_receive(sys.stdin.buffer))
        except EOFError:
            end()
            os._exit(0)  # the packer has ended, or has no more tasks

    threading.Thread(target=listen, daemon=True).start()
    sent = inbox.get()
    work: tuple[Callable[[Any, Any], Any], Any] | None = None
    while True:
        task = inbox.get()
        try:
            with exits_are_errors():
                if work is None:
                    work = _unpacked(sent)
                function, job = work
                answer: tuple[bool, object] = (True, function(job, _loaded(task)))
        except ShardstreamError as error:
            answer = (False, error)
        except MemoryError:
            answer = (False, StorageError("a worker ran out of memory; use fewer workers"))
        except Exception as error:  # noqa: BLE001 - a bug, which the packer raises
            answer = (False, RuntimeError(f"{type(error).__name__}: {error}"))
        try:
            data = _dumped(answer)
            if not answer[0]:
                _loaded(data)  # some errors can be pickled, but not unpickled
        except Exception as error:  # noqa: BLE001
            data = _dumped((False, RuntimeError(f"{type(error).__name__}: {error}, of {answer[1]!r}")))
        _send(answers, data)


def _unpacked(sent: bytes) -> Any:
    try:
        return _loaded(sent)
    except Exception as error:
        raise OptionError(_SENT.format(error=f"{type(error).__name__}: {error}")) from error


class WorkerDiedError(StorageError):
    """A worker process ended while it had a task."""


class Worker:
    """The packer's end of a worker process.

    Args:
        function, job: It calls function(job, task).
        inherited: File descriptors that it inherits.
    """

    def __init__(self, function: Callable[..., Any], job: object, inherited: Sequence[int]) -> None:
        environment = dict(os.environ)
        # The caller may have found this package only by its own sys.path.
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["SHARDSTREAM_JOB"] = job_name()
        # There is a process for each core already, so that threads of BLAS would only slow each other down.
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
            environment.setdefault(name, "1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=tuple(inherited),
            env=environment,
        )
        assert self.process.stdin
        assert self.process.stdout
        self._in, self._out = self.process.stdin, self.process.stdout
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._process = _process_descriptor(self.process.pid)
        if self._process is not None:
            self._poll.register(self._process, select.POLLIN)
        self._setup: object = (function, job)
        self.ended = False  # by `end`
        self._lock = threading.Lock()  # guards the rest
        self._calling = self._stopped = False

    def call(self, task: object) -> Any:
        """function(job, task), there.

        Raises:
            WorkerDiedError: The process has ended.
            OptionError: An argument cannot be sent.
            Exception: What the call raised.
        """
        try:
            sent = [_dumped(message) for message in (self._setup, task) if message is not None]
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise OptionError(_SENT.format(error=error)) from error
        self._setup = None
        try:
            with self._open():
                for data in sent:
                    _send(self._in, data)
                done, answer = _loaded(self._received())
        except (EOFError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_TIMEOUT)
            code = self.process.returncode
            why = "was it out of memory?" if code == -9 else "it may have printed why"
            raise WorkerDiedError(f"a worker process ended unexpectedly (exit code {code}); {why}") from error
        if not done:
            raise answer
        return answer

    def end(self) -> None:
        """Kill the process, whatever it does. A call that waits for its answer raises WorkerDiedError."""
        self.ended = True
        self.process.kill()

    def stop(self) -> None:
        """End it, and wait for its end."""
        self.process.kill()
        # Else it hangs in a file system, and dies when that answers.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_TIMEOUT)
        with self._lock:
            self._stopped = True
            if not self._calling:
                self._close()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Keep the pipes open while another thread may stop this worker."""
        with self._lock:
            if self._stopped:
                raise EOFError
            self._calling = True
        try:
            yield
        finally:
            with self._lock:
                self._calling = False
                if self._stopped:
                    self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # closing writes bytes that a dead worker did not read
            self._in.close()
        self._out.close()
        if self._process is not None:
            os.close(self._process)
            self._process = None

    def _received(self) -> bytes:
        """An answer. Raises EOFError if the process has ended, even if a child of it still has the pipe."""
        size = _LENGTH.unpack(self._bytes(_LENGTH.size))[0]
        return self._bytes(size)

    def _bytes(self, size: int) -> bytes:
        pipe, found = self._out.fileno(), bytearray()
        while len(found) < size:
            ended = self.process.poll() is not None  # before the look: what it wrote in the end counts
            ready = [each for each, _ in self._poll.poll(0 if ended else _LOOK * 1000)]
            if pipe in ready:
                data = os.read(pipe, min(_PIECE, size - len(found)))
                if not data:
                    raise EOFError
                found += data
            elif ended:
                raise EOFError
        return bytes(found)


def _process_descriptor(pid: int) -> int | None:
    """A descriptor that can be read when a process has ended; None where there is no such thing."""
    with contextlib.suppress(OSError, AttributeError):
        return os.pidfd_open(pid)
    return None
