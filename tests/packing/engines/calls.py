"""What tests give to workers. It is imported there, so it is a module of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from shardstream.errors import CommitError, SourceError, StorageError
from shardstream.packing.job import stage_of
from shardstream.packing.shard_puts import ShardPuts
from shardstream.packing.worker import run_task


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


def first(path: Path) -> bool:
    """Whether this is the first call with a path, of all processes. The file holds who it is."""
    try:
        with path.open("x") as file:
            file.write(f"{os.getpid()}")
    except FileExistsError:
        return False
    return True


def woken(folder: Path, seconds: float = 600.0) -> None:
    """Wait until the test says so."""
    deadline = time.monotonic() + seconds
    while not (folder / "wake").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def slow_once(job: str, task: int) -> int:
    """The first attempt at task 3 hangs."""
    if task == 3 and first(Path(job, "slow")):
        woken(Path(job))
    return task


def dies_slowly(job: str, task: int) -> int:
    """Task 3 kills its process, after a time in which a second attempt begins."""
    if task == 3:
        Path(job, f"{time.monotonic_ns()}").touch()
        time.sleep(0.8)
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def second_fails(job: tuple[str, str], task: int) -> int:
    """The second attempt at task 3 raises an error of the kind that the job names; the first one is slow."""
    folder, kind = job
    if task == 3:
        if not first(Path(folder, "slow")):
            Path(folder, "wake").touch()
            return fails(kind, task)
        woken(Path(folder))
        time.sleep(0.3)
    return task


def forked(folder: str) -> None:
    """Leave a child, which has the pipes of this process, too."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    Path(folder, f"child-{child}").touch()


def forks(job: str, task: int) -> int:
    """The first attempt at task 3 has a child, and hangs."""
    if task == 3 and first(Path(job, "slow")):
        forked(job)
        Path(job, "waits").touch()
        time.sleep(600)
    return task


def forks_or_fails(job: str, task: int) -> int:
    """Task 3 fails while others have children, and hang."""
    if task == 3:
        woken(Path(job))
        return fails("storage", task)
    if task > 3 and first(Path(job, "slow")):
        forked(job)
        Path(job, "wake").touch()
        time.sleep(600)
    return task


def stalling(job: Any, task: Any) -> Any:
    """As `run_task`, but the first attempt at task 1 of each pass hangs, at the point that STALL names.

    It hangs until it is woken, or for some seconds.
    """
    folder, point, *seconds = os.environ["STALL"].split(":")

    def stall() -> None:
        if task.number == 1 and first(Path(folder, f"{stage_of(job, task)}-{point}")):
            woken(Path(folder), *map(float, seconds))

    def behind(*arguments: Any) -> None:
        write(*arguments)
        stall()

    if point == "before":
        stall()
    write = ShardPuts.write
    with pytest.MonkeyPatch.context() as patch:
        if point == "within":
            patch.setattr(ShardPuts, "write", behind)
        result = run_task(job, task)
    if point == "after":
        stall()
    return result


class PlainFiles(LocalFileSystem):
    """Files that all processes see, in a store whose puts take no condition, like most of fsspec's."""

    protocol = "plainfiles"
    root_marker = "/"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("plainfiles://"))


fsspec.register_implementation("plainfiles", PlainFiles, clobber=True)
