"""What workers of Ray and Dask run in the tests. They import it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shardstream.errors import StorageError

TASKS = 16


def samples(task: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The samples of one task, slowly, so that something can be killed meanwhile."""
    for number in range(8):
        time.sleep(seconds / 8)
        yield {"__key__": f"{task:02d}-{number}", "txt": f"task {task}, sample {number} " * 40}


def slow(seconds: float = 0.4) -> list[Callable[[], Iterator[dict[str, Any]]]]:
    return [functools.partial(samples, task, seconds) for task in range(TASKS)]


def dies(job: str, task: int) -> int:
    """Task 3 kills its worker."""
    if task == 3:
        Path(job, f"{time.monotonic_ns()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def fails(job: str, task: int) -> tuple[int, str]:
    """A store fails in task 3, but on one of the nodes."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    if task == 3:
        with contextlib.suppress(FileExistsError), Path(job, "node").open("x") as file:
            file.write(node)
        if Path(job, "node").read_text() == node:
            raise StorageError("no answer")
    return task, node


def hangs(job: tuple[str, str], task: int) -> int:
    """The first attempt at task 3 hangs: its process sleeps, or is stopped."""
    folder, how = job
    if task == 3:
        with contextlib.suppress(FileExistsError), Path(folder, "hung").open("x") as file:
            file.write(f"{os.getpid()}")
            file.flush()
            if how == "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                time.sleep(600)
    return task
