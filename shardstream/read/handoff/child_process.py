"""Starts a child process that has the modules of this process, or says why it could not start.

The child is no fork, since this process has threads. It imports the main module of the user, as with "spawn"
of multiprocessing. There are three differences to multiprocessing: a daemonic process may start a child, an
error at the start is raised here, and a fork of this process neither ends the child nor waits for it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing import context, reduction, spawn
from pathlib import Path
from typing import Any

from shardstream.errors import OptionError, StorageError

__all__ = ["Child", "TimeoutExpired", "importing", "start"]

Child = subprocess.Popen
TimeoutExpired = subprocess.TimeoutExpired
Serve = Callable[[socket.socket, Any], None]

_READY = b"ready"
_LOOK = 1.0  # seconds between looks at whether the other process lives
_TEXT = 1 << 16
_SENT = (
    "engine='process' sends the dataset with its transform, and collate, to another process: {error}. "
    "Use functions that are defined at the top of a module"
)
_GUARD = 'what starts things belongs below `if __name__ == "__main__":`'
_importing: list[bool] = []


class _Inherited:
    """A file descriptor that has the same number in the child."""

    def __init__(self, file: int) -> None:
        self._file = file

    def detach(self) -> int:
        """The number of the descriptor."""
        return self._file


class _Spawning:
    """What multiprocessing needs to pickle locks and shared memory, which go to the child as descriptors."""

    def __init__(self) -> None:
        self.files: list[int] = []

    def duplicate_for_child(self, file: int) -> int:
        """Let the child inherit a descriptor."""
        self.files.append(file)
        return file

    def DupFd(self, file: int) -> _Inherited:  # noqa: N802 - multiprocessing calls it so
        """What is pickled in place of a descriptor."""
        return _Inherited(file)


class _UnguardedError(OptionError):
    """The main module of a child starts a child."""


def importing() -> bool:
    """Whether this process is a child that is importing the main module of its parent now."""
    return bool(_importing)


def start(serve: Serve, value: object) -> tuple[Child[bytes], socket.socket]:
    """Start a child that runs `serve(socket, value)`.

    Args:
        serve: A function at the top of a module.
        value: Its second argument, which must be picklable.

    Returns:
        The child, and this end of the socket.

    Raises:
        OptionError: The value cannot be pickled, or the child cannot import the main module. The message says
            what to do.
        StorageError: The child ended while it started.
    """
    if importing():
        raise _UnguardedError(
            f"engine='process' starts a process that imports the main module, which then uses it: {_GUARD}"
        )
    spawning = _Spawning()
    preparation = _preparation()
    try:
        with _set(spawning):
            sent = reduction.ForkingPickler.dumps((serve, value))
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise OptionError(_SENT.format(error=error)) from error
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, open(os.memfd_create("shardstream-start"), "w+b") as file:
        pickle.dump((preparation, bytes(sent)), file)
        file.flush()
        file.seek(0)
        ends = theirs.fileno(), file.fileno()
        process = _run(preparation["sys_path"], ends, [*ends, *spawning.files])
    try:
        _wait(process, ours)
    except BaseException:
        ours.close()
        process.kill()
        process.wait()
        raise
    return process, ours


def _preparation() -> dict[str, Any]:
    found = spawn.get_preparation_data("shardstream-loader")
    # Standard input, -c and notebooks have a main module without a file, which cannot be imported.
    if not os.path.isfile(found.get("init_main_from_path", __file__)):
        del found["init_main_from_path"]
    return found | {"authkey": bytes(found["authkey"])}


@contextlib.contextmanager
def _set(spawning: _Spawning) -> Iterator[None]:
    before: Any = context.get_spawning_popen()
    context.set_spawning_popen(spawning)  # type: ignore[arg-type]
    try:
        yield
    finally:
        context.set_spawning_popen(before)


def _run(path: list[str], ends: tuple[int, int], files: list[int]) -> Child[bytes]:
    flags: list[str] = getattr(subprocess, "_args_from_interpreter_flags", list)()
    code = f"import sys; sys.path[:] = {path!r}; from {__name__} import main; main(*{ends}, {os.getpid()})"
    # Ctrl-C is for the consumer, which then ends the child. It must not reach the child while that starts.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return subprocess.Popen(
            [os.fsdecode(spawn.get_executable()), *flags, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=files,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(process: Child[bytes], ours: socket.socket) -> None:
    """Wait until the child is ready. Raises OptionError with what the child said, if it could not start."""
    ours.settimeout(_LOOK)
    while True:
        try:
            said = ours.recv(_TEXT)
        except TimeoutError:
            if process.poll() is None:
                continue
            said = b""
        except OSError:
            said = b""
        if said == _READY:
            return
        if said:
            raise OptionError(said.decode())
        raise StorageError(
            f"the loader's process ended while it started (exit code {process.wait()}); did it print why?"
        )


def main(there: int, data: int, parent: int) -> None:
    """What the child does: import the main module, unpickle the value, and call `serve`.

    Args:
        there: The descriptor of the socket.
        data: The descriptor of the file with the pickles.
        parent: The process id of the parent.
    """
    # A signal to a whole group of processes is meant for the consumer. The child ends when the consumer does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    theirs = socket.socket(fileno=there)
    with open(data, "rb") as file:
        preparation, sent = pickle.load(file)  # noqa: S301 - from our own parent
    _importing.append(True)
    try:
        spawn.prepare(preparation)
    except BaseException as error:  # noqa: BLE001 - raised by the parent
        if isinstance(error, _UnguardedError):
            _fail(theirs, str(error))
        name = Path(preparation.get("init_main_from_path", "the main module")).name
        _fail(theirs, f"engine='process': its process cannot import {name} ({_told(error)}); {_GUARD}")
    _importing.clear()
    try:
        serve, value = pickle.loads(sent)  # noqa: S301
    except Exception as error:  # noqa: BLE001
        _fail(theirs, _SENT.format(error=_told(error)) + ", in a file, not in a notebook or standard input")
    if os.getppid() == parent:
        theirs.sendall(_READY)
        serve(theirs, value)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _fail(theirs: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):
        theirs.sendall(text.encode("utf-8", "backslashreplace")[: _TEXT - 1])
    os._exit(1)
