"""Runs the ranks of a job as real processes: start, collect, kill, each wait with a deadline.

A rank is a function (forked from a server that has torch imported, so that a start takes
milliseconds) or any command. What a rank returns is JSON; what it prints or raises goes into
`rank-N.log` and appears in the message when it fails.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

from tests.watch import ended

__all__ = ["Ranks", "call", "command", "ended", "group", "run", "save"]

# A rank that waits for others longer than this fails by itself, also when its test is gone.
DEADLINE = 90.0

# What training scripts need: seconds for each start otherwise. Optimizers import _dynamo at their first step.
PRELOAD = (
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
)


@dataclass
class Ranks:
    """A running job of one process per rank. Leaving the context kills what still runs."""

    handles: list[Any]
    folder: Path

    def __enter__(self) -> Ranks:  # noqa: PYI034, Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            with contextlib.suppress(ProcessLookupError):
                handle.kill()
        for handle in self.handles:
            code(handle, DEADLINE)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one rank."""
        os.kill(self.handles[rank].pid, number)

    def wait(self, seconds: float = DEADLINE) -> list[int]:
        """The exit codes once all have ended, or once one has failed, the others then killed."""
        limit = time.monotonic() + seconds
        left = {sentinel(handle): handle for handle in self.handles}
        while left:
            done = wait(list(left), max(0.0, limit - time.monotonic()))
            if not done:
                for handle in left.values():
                    os.kill(handle.pid, signal.SIGABRT)  # it prints where each of its threads is
                    code(handle, DEADLINE)
                raise AssertionError(f"{len(left)} ranks still run after {seconds:.0f} s\n{self.logs()}")
            for fd in done:
                if code(left.pop(fd), DEADLINE) != 0:
                    for handle in left.values():
                        handle.kill()
        return [code(handle, DEADLINE) for handle in self.handles]

    def results(self, seconds: float = DEADLINE) -> list[Any]:
        """What the ranks returned; fails with their output if one of them did not."""
        codes = self.wait(seconds)
        assert not any(codes), f"the ranks ended with {codes}\n{self.logs()}"
        return [json.loads(result(self.folder, rank).read_text()) for rank in range(len(codes))]

    def logs(self) -> str:
        """The end of the output of each rank."""
        found = []
        for rank in range(len(self.handles)):
            path = self.folder / f"rank-{rank}.log"
            text = path.read_text(errors="replace") if path.exists() else ""
            found.append(f"--- rank {rank}\n{text[-8000:]}")
        return "\n".join(found)


def sentinel(handle: Any) -> int:
    """A descriptor that is ready once the process has ended."""
    return int(handle.pidfd if isinstance(handle, Command) else handle.sentinel)


class Command(subprocess.Popen[bytes]):
    """A process whose end can be waited for together with that of others."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pidfd = os.pidfd_open(self.pid)
        weakref.finalize(self, os.close, self.pidfd)


def code(handle: Any, seconds: float) -> int:
    """The exit code of a process, whose end is waited for."""
    if isinstance(handle, Command):
        return handle.wait(seconds)
    handle.join(seconds)
    assert handle.exitcode is not None, f"process {handle.pid} still runs after {seconds:.0f} s"
    return int(handle.exitcode)


def result(folder: Path, rank: int) -> Path:
    """Where a rank leaves its result."""
    return folder / f"rank-{rank}.json"


def call(function: Callable[..., Any], size: int, folder: Path, *args: Any) -> Ranks:
    """Start `function(*args)` on `size` ranks; it may ask `group()` for a process group.

    The function is a module's own, and its arguments can be pickled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    # Imported once, by the server; `__main__` is pytest, which each rank would import otherwise.
    context.set_forkserver_preload(
        ["__main__", "torch.distributed", "shardstream.loader", "pytest", *PRELOAD]
    )
    where = function.__module__, function.__qualname__
    processes = []
    for rank in range(size):
        process = context.Process(target=_entry, args=(where, rank, size, folder, args), daemon=True)
        process.start()
        processes.append(process)
    return Ranks(processes, folder)


def command(arguments: Sequence[str], size: int, folder: Path, env: Mapping[str, str] | None = None) -> Ranks:
    """Start a command on `size` ranks, with the variables that torchrun sets.

    It leaves its result, JSON, in the file that the variable RESULT names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handles = []
    port = _free_port()
    for rank in range(size):
        variables = {
            "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
            "RESULT": str(result(folder, rank)), "PYTHONFAULTHANDLER": "1",
        }  # fmt: skip
        with (folder / f"rank-{rank}.log").open("wb") as log:
            handles.append(
                Command(
                    list(arguments),
                    env={**os.environ, **variables, **(env or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
    return Ranks(handles, folder)


def run(
    function: Callable[..., Any], size: int, folder: Path, *args: Any, seconds: float = DEADLINE
) -> list[Any]:
    """The results of `function(*args)` on `size` ranks."""
    with call(function, size, folder, *args) as ranks:
        return ranks.results(seconds)


_PLACE: tuple[int, int, Path] | None = None


@contextlib.contextmanager
def group() -> Iterator[Any]:
    """torch.distributed with gloo over all ranks of the job, within a rank."""
    import torch.distributed as dist

    assert _PLACE is not None
    rank, size, folder = _PLACE
    limit = datetime.timedelta(seconds=DEADLINE)
    dist.init_process_group("gloo", f"file://{folder}/store", limit, world_size=size, rank=rank)
    yield dist
    # A rank that leaves early takes its connections with it.
    dist.barrier()
    # The group is not destroyed: the rank ends by `os._exit`. A DDP model that is freed after its group frees
    # the group while it has the GIL. That hangs if a thread of gloo needs the GIL to end its last work.


def save(path: Path, value: Any) -> None:
    """Write JSON so that a reader, or a kill at any moment, finds the old file or the new one."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(json.dumps(value))
    new.replace(path)


def _entry(where: tuple[str, str], rank: int, size: int, folder: Path, args: tuple[Any, ...]) -> NoReturn:
    global _PLACE
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    _PLACE = rank, size, folder
    try:
        import torch

        torch.set_num_threads(1)
        function = getattr(importlib.import_module(where[0]), where[1])
        save(result(folder, rank), function(*args))
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
