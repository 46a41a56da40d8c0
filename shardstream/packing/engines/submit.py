"""The engine of anything with a method `submit`: a Dask client, concurrent.futures, MPI."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from shardstream.cores import cores
from shardstream.errors import OptionError, StorageError
from shardstream.format.numbers import whole_number
from shardstream.packing.engines.attempts import WorkerLostError
from shardstream.packing.engines.batch import Answer, Setup, run_batch
from shardstream.packing.engines.dispatch import dispatched
from shardstream.packing.engines.engine import Counts, Needs
from shardstream.packing.engines.nodes import Expected, marked, versions
from shardstream.packing.engines.sealed import Sealer

__all__ = ["Submit"]

_END_TIMEOUT = 10.0
_LOOK = 2.0  # seconds between questions to Dask's scheduler, each of which is a message over the network
_CONTINUES = "the same pack with resume continues, in another executor"


@dataclass(frozen=True)
class Submit:
    """Tasks run in an executor that the caller has started, and ends.

    The executor has a method `submit(function, *arguments)`, which returns a future of the usual kind. Its
    workers have the same packages in the same versions.

    Args:
        executor: The executor.
        retries: How often a task is tried again if a store fails in it.

    Raises:
        OptionError: An argument is wrong.
    """

    executor: Any
    retries: int = 5

    def __post_init__(self) -> None:
        if not callable(getattr(self.executor, "submit", None)):
            raise OptionError(f"executor={self.executor!r} must have a method submit")
        whole_number("retries", self.retries, 0)

    @property
    def shared(self) -> bool:
        """Whether tasks may run on other machines."""
        return not isinstance(self.executor, (ThreadPoolExecutor, ProcessPoolExecutor))

    @contextlib.contextmanager
    def started(self, needs: Needs) -> Iterator[_Executor]:
        """See `Engine.started`. Workers are checked when they get their first task."""
        sealer = Sealer(needs.storage_options)
        with contextlib.ExitStack() as at_end:
            folders = needs.folders
            if not folders and not self.shared:
                # The mark of a folder ends batches with the pack, also if the destination is a store.
                new = tempfile.TemporaryDirectory(prefix="shardstream-", ignore_cleanup_errors=True)
                folders = (at_end.enter_context(new),)
            marks = at_end.enter_context(marked(folders))
            expected = Expected(versions(), marks, needs.files, sealer.variables)
            yield _Executor(self.executor, needs.workers, self.retries, sealer, expected)


@dataclass
class _Executor:
    """The workers of an executor. See `Workers` and `Crew`."""

    executor: Any
    workers: int | None
    retries: int
    sealer: Sealer
    expected: Expected
    counts: Counts = field(default_factory=Counts)
    _setup: Setup | None = None
    _slots: int = 0
    _looked: float | None = None
    _ended: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def run(
        self,
        function: Callable[[Any, Any], Any],
        job: object,
        tasks: Sequence[Any],
        inherited: Sequence[int] = (),
    ) -> Iterator[Any]:
        del inherited  # the workers are there already
        self._setup = Setup(uuid.uuid4().hex, self.expected, self.sealer.seal((function, job)))
        return dispatched(self, tasks, self.workers, self.retries, self.counts)

    def capacity(self) -> int:
        now = time.monotonic()
        if self._looked is None or now - self._looked > _LOOK:
            try:
                self._slots, self._looked = _capacity(self.executor), now
            except Exception as error:
                raise StorageError(f"the executor does not answer: {_told(error)}; {_CONTINUES}") from error
        return self._slots

    def spare(self) -> int:
        return self.capacity()  # no executor tells who else uses it

    def lacks(self) -> str:
        return ""  # no executor tells

    def submit(self, tasks: Sequence[Any], avoid: Sequence[str]) -> Any:
        del avoid  # no executor knows it
        sealed = self.sealer.seal(list(tasks))
        try:
            future = self.executor.submit(run_batch, self._setup, sealed, uuid.uuid4().hex)
        except Exception as error:
            raise StorageError(f"the executor takes no more tasks: {_told(error)}; {_CONTINUES}") from error
        future.add_done_callback(self._ended.put)
        return future

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        ended = []
        with contextlib.suppress(queue.Empty):
            ended.append(self._ended.get(timeout=seconds))
            while True:
                ended.append(self._ended.get_nowait())
        return [future for future in ended if future in handles]

    def answer(self, handle: Any) -> Answer:
        try:
            answer: Answer = handle.result()
        except ImportError as error:
            raise OptionError(
                f"a worker cannot import what it needs: {error}. Install the same shardstream there"
            ) from error
        except KeyboardInterrupt:
            raise
        except (concurrent.futures.CancelledError, asyncio.CancelledError) as error:
            # The executor was shut down, or its user cancelled it: no worker died.
            raise WorkerLostError(_told(error), with_node=True, workers=0) from error
        # What a batch raises is in its answer. All else is of the executor, SystemExit of a worker, too.
        except BaseException as error:
            # Dask gives up on a call after several of its workers have died.
            killed = type(error).__name__ == "KilledWorker"
            raise WorkerLostError(_told(error), workers=2 if killed else 1) from error
        return answer

    def drop(self, handle: Any) -> None:
        with contextlib.suppress(Exception):  # the executor may be gone
            handle.cancel()

    def cancel(self, handles: Sequence[Any]) -> None:
        deadline = time.monotonic() + _END_TIMEOUT
        with contextlib.suppress(Exception):  # the executor may be gone, and why is told already
            for future in handles:
                future.cancel()
            while not all(future.done() for future in handles) and (left := deadline - time.monotonic()) > 0:
                self.wait((), left)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _capacity(executor: Any) -> int:
    """How many tasks an executor runs at a time."""
    if callable(threads := getattr(executor, "nthreads", None)):  # of Dask: by worker
        return sum(threads().values())
    number = getattr(executor, "_max_workers", None)
    return number if isinstance(number, int) and number > 0 else cores()
