"""Tasks in worker processes on this machine.

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
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from shardstream.counters.page import end, job_name
from shardstream.errors import OptionError, ShardstreamError, StorageError
from shardstream.packing.engines.engine import Counts
from shardstream.packing.engines.exits import exits_are_errors
from shardstream.storage.secrets import redact

_LENGTH = struct.Struct("<Q")
# Ctrl-C reaches the whole process group. Workers ignore it, since the packer ends them.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from shardstream.packing.engines.local import serve; serve()"
)
_END_TIMEOUT = 10.0
_NO_MORE = object()
_MOST_KILLS = 3  # workers that may die in the same task
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


class _Worker:
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
        self._setup: object = (function, job)

    def call(self, task: object) -> Any:
        try:
            sent = [_dumped(message) for message in (self._setup, task) if message is not None]
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise OptionError(_SENT.format(error=error)) from error
        self._setup = None
        try:
            for data in sent:
                _send(self._in, data)
            done, answer = _loaded(_receive(self._out))
        except (EOFError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_TIMEOUT)
            code = self.process.returncode
            why = "was it out of memory?" if code == -9 else "it may have printed why"
            raise WorkerDiedError(f"a worker process ended unexpectedly (exit code {code}); {why}") from error
        if not done:
            raise answer
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(_END_TIMEOUT)
        with contextlib.suppress(OSError):  # closing writes bytes that a dead worker did not read
            self._in.close()
        self._out.close()


def _named(task: Any) -> str:
    """A task, for messages: its number, and the first file that it reads."""
    files = getattr(task, "files", ())
    what = f"task {getattr(task, 'number', task)}"
    return f"{what} ({redact(files[0].url)})" if files else what


def run_tasks(
    function: Callable[[Any, Any], Any],
    job: object,
    tasks: Sequence[Any],
    workers: int,
    inherited: Sequence[int] = (),
    counts: Counts | None = None,
) -> Iterator[Any]:
    """Yield function(job, task) for every task, in the order in which they end.

    A worker that dies is replaced, and its task is given to the new one.

    Args:
        function: A function in a module that workers can import.
        job: The first argument of each call. It is pickled once for each worker.
        tasks: The second argument of each call.
        workers: How many processes work. With one worker or one task, the calls are made in this process.
        inherited: File descriptors that workers inherit.
        counts: Workers that died are counted here, and the tasks that others got.

    Raises:
        OptionError: An argument cannot be sent to another process.
        StorageError: Three workers died in the same task.
        Exception: The first error of a call. All workers are stopped.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            with exits_are_errors():
                result = function(job, task)
            yield result
        return
    # Taken one by one: a plan may have more tasks than memory has room for.
    pending, taking = iter(tasks), threading.Lock()
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    pool: list[_Worker] = []

    ended = threading.Event()
    changing = threading.Lock()  # the pool: a worker may die when all are stopped

    def replaced(worker: _Worker) -> _Worker:
        worker.stop()
        with changing:
            if ended.is_set():
                raise StorageError("the workers are stopped")
            if counts is not None:
                counts.lost += 1
                counts.retried += 1
            pool[pool.index(worker)] = new = _Worker(function, job, inherited)
        return new

    def answered(worker: _Worker, task: Any) -> tuple[_Worker, Any]:
        for kills in range(1, _MOST_KILLS + 1):
            try:
                return worker, worker.call(task)
            except WorkerDiedError as error:
                if kills == _MOST_KILLS:
                    raise StorageError(
                        f"{_named(task)}: {kills} workers died in it; the last: {error}"
                    ) from error
                worker = replaced(worker)
        raise AssertionError

    def feed(worker: _Worker) -> None:
        try:
            while True:
                with taking:
                    task = next(pending, _NO_MORE)
                if task is _NO_MORE:
                    return
                worker, answer = answered(worker, task)
                answers.put((True, answer))
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            answers.put((False, error))

    threads: list[threading.Thread] = []
    try:
        for _ in range(min(workers, len(tasks))):
            pool.append(_Worker(function, job, inherited))
            threads.append(threading.Thread(target=feed, args=(pool[-1],), daemon=True))
            threads[-1].start()
        for _ in range(len(tasks)):
            done, answer = answers.get()
            if not done:
                raise answer
            yield answer
    finally:
        with changing:
            ended.set()
        for worker in pool:
            worker.stop()
        for thread in threads:
            thread.join(_END_TIMEOUT)
