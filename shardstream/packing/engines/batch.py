"""What a worker of a cluster does: a batch of tasks, one after another, until one fails."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shardstream.errors import ShardstreamError, StorageError
from shardstream.packing.engines.exits import exits_are_errors
from shardstream.packing.engines.nodes import Expected, has_marks, problems
from shardstream.packing.engines.sealed import opened

__all__ = ["Answer", "Setup", "run_batch"]


@dataclass(frozen=True)
class Setup:
    """What all batches of one pass have in common.

    Args:
        name: A name that no other pass has.
        expected: What each machine must have.
        work: The sealed function and job. They are opened after the check, since their classes may be others
            in another version.
    """

    name: str
    expected: Expected
    work: bytes = field(repr=False)


@dataclass
class Answer:
    """What became of a batch.

    Args:
        node: The machine's name or id.
        problems: Why the machine cannot do the job. Then no task was begun.
        results: Those of the first tasks.
        seconds: How long they took together.
        error: What the next task raised; None if there is none, since all are done.
    """

    node: str
    problems: list[str] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None


_lock = threading.Lock()  # an executor may have several threads
_ready: tuple[str, Callable[[Any, Any], Any], Any] | None = None


def run_batch(setup: Setup, tasks: bytes, attempt: str, node: str = "") -> Answer:
    """Do a batch of tasks.

    Args:
        setup: The function, the job, and what this machine must have.
        tasks: The sealed list of tasks.
        attempt: Another text for each attempt, since some engines do not call a function twice with the same
            arguments.
        node: The name of this machine. "": as it calls itself.

    Returns:
        The results, and the first error. Nothing is raised, so that what is raised is the engine's.
    """
    answer = Answer(node or socket.gethostname())
    started = time.monotonic()
    try:
        with exits_are_errors():
            function, job = _work(setup, answer)
            if answer.problems:
                return answer
            for task in opened(tasks):
                if not has_marks(setup.expected):
                    raise StorageError("the pack that gave this task has ended")
                answer.results.append(function(job, task))
    except ShardstreamError as error:
        answer.error = error
    except MemoryError:
        answer.error = StorageError("a worker ran out of memory; use fewer workers")
    except Exception as error:  # noqa: BLE001 - a bug, which the packer raises
        answer.error = RuntimeError(f"{type(error).__name__}: {error}")
    answer.seconds = time.monotonic() - started
    return _sendable(answer)


def _work(setup: Setup, answer: Answer) -> tuple[Callable[[Any, Any], Any], Any]:
    global _ready
    with _lock:
        if _ready is None or _ready[0] != setup.name:
            answer.problems = problems(setup.expected)
            if answer.problems:
                return _nothing, None
            _ready = (setup.name, *opened(setup.work))
        return _ready[1:]


def _nothing(job: Any, task: Any) -> None:
    """Never called: this machine gets no task."""


def _sendable(answer: Answer) -> Answer:
    """The answer, without what cannot be pickled: some errors can be, but cannot be made again."""
    try:
        pickle.loads(pickle.dumps(answer.error))  # noqa: S301 - our own
    except Exception as error:  # noqa: BLE001
        answer.error = RuntimeError(f"{type(error).__name__}: {error}, of {answer.error!r}")
    try:
        pickle.dumps(answer.results)
    except Exception as error:  # noqa: BLE001
        what = f"{type(error).__name__}: {error}"
        answer.results, answer.error = [], RuntimeError(f"the result of a task cannot be sent: {what}")
    return answer
