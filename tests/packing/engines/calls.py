"""What tests give to workers. It is imported there, so it is a module of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from shardstream.errors import CommitError, SourceError, StorageError


def doubled(job: int, task: int) -> tuple[int, int]:
    return task, 2 * task + job


def fails(job: str, task: int) -> int:
    """Task 3 raises an error of the kind that the job names."""
    if task == 3:
        raise {
            "source": SourceError, "storage": StorageError, "commit": CommitError, "bug": ZeroDivisionError
        }[job]("task 3 failed")  # fmt: skip
    return task


def exits(job: object, task: int) -> None:
    sys.exit(job)


def unsendable(job: object, task: int) -> object:
    return threading.Lock() if task == 1 else task


def noted(job: str, task: int) -> int:
    """Leaves a file for each call."""
    Path(job, f"{task}-{time.monotonic_ns()}").touch()
    return task


def once(job: str, task: int) -> int:
    """A store fails in each task, once."""
    path = Path(job, f"{task}")
    if not path.exists():
        path.touch()
        raise StorageError("no answer")
    return task


def dies(job: Any, task: int) -> int:
    """Task 3 kills its process."""
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def dies_once(job: str, task: int) -> int:
    """Task 3 kills its process, the first time."""
    path = Path(job, "died")
    if task == 3 and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task
