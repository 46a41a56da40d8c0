"""Tasks in worker processes on this machine.

The workers are plain subprocesses that speak pickle over pipes, not multiprocessing: they do not
import the caller's __main__, so that a script without a main guard may pack; they are not forks of a
process that may hold threads; and they end by themselves when the packer dies.
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

from shardstream.errors import ShardstreamError, StorageError

_LENGTH = struct.Struct("<Q")
# Ctrl-C reaches the whole process group; it is the packer that ends its workers.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from shardstream.pack.engines.local import serve; serve()"
)
_END_TIMEOUT = 10.0


def _send(pipe: IO[bytes], message: object) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    size = _LENGTH.unpack(head)[0]
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError  # the other end died while it wrote
    return pickle.loads(data)  # noqa: S301 - from our own child or parent only


def serve() -> None:
    """The worker's main loop: (function, job) once, then tasks; one answer each."""
    # Answers have a descriptor of their own, so that nothing a library prints gets between them.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                inbox.put(_receive(sys.stdin.buffer))
        except EOFError:
            os._exit(0)  # the packer is gone or has no more tasks: nothing here is worth finishing

    threading.Thread(target=listen, daemon=True).start()
    function, job = inbox.get()
    while True:
        task = inbox.get()
        try:
            answer: tuple[bool, object] = (True, function(job, task))
        except ShardstreamError as error:
            answer = (False, error)
        except MemoryError:
            answer = (False, StorageError("a worker ran out of memory; use fewer workers"))
        except Exception as error:  # noqa: BLE001 - a bug: carry what it was to the packer
            answer = (False, RuntimeError(f"{type(error).__name__}: {error}"))
        _send(answers, answer)


class _Worker:
    def __init__(self, function: Callable[..., Any], job: object, keep: Sequence[int]) -> None:
        environment = dict(os.environ)
        # The package may have been found by the caller's sys.path alone.
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        # One process a core is all the parallelism there is; idle BLAS threads would only spin.
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
            environment.setdefault(name, "1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=tuple(keep),
            env=environment,
        )
        assert self.process.stdin
        assert self.process.stdout
        self._in, self._out = self.process.stdin, self.process.stdout
        self._setup = (function, job)

    def call(self, task: object) -> Any:
        try:
            if self._setup:
                _send(self._in, self._setup)
                self._setup = ()  # type: ignore[assignment]
            _send(self._in, task)
            done, answer = _receive(self._out)
        except (EOFError, OSError) as error:
            code = self.process.poll()
            raise StorageError(
                f"a worker process ended unexpectedly (exit code {code}); was it out of memory?"
            ) from error
        if not done:
            raise answer
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(_END_TIMEOUT)
        with contextlib.suppress(OSError):  # what a dead worker did not take is written once more
            self._in.close()
        self._out.close()


def run_tasks(
    function: Callable[[Any, Any], Any],
    job: object,
    tasks: Sequence[Any],
    workers: int,
    keep: Sequence[int] = (),
) -> Iterator[Any]:
    """Yield function(job, task) for every task, in the order in which they end.

    The first error stops all workers and is raised. `keep` lists descriptors that workers inherit.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield function(job, task)
        return
    pending: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for task in tasks:
        pending.put(task)
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    pool: list[_Worker] = []

    def feed(worker: _Worker) -> None:
        try:
            while True:
                answers.put((True, worker.call(pending.get_nowait())))
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            answers.put((False, error))

    threads: list[threading.Thread] = []
    try:
        for _ in range(min(workers, len(tasks))):
            pool.append(_Worker(function, job, keep))
            threads.append(threading.Thread(target=feed, args=(pool[-1],), daemon=True))
            threads[-1].start()
        for _ in tasks:
            done, answer = answers.get()
            if not done:
                raise answer
            yield answer
    finally:
        for worker in pool:
            worker.stop()
        for thread in threads:
            thread.join(_END_TIMEOUT)
