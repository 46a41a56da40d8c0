"""The file of this process: made when its work begins, removed when it ends.

Before that, and if no file can be made, the numbers are in private memory. So code that counts never asks.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import mmap
import os
import struct
import sys
import threading
import time

from shardstream.counters.cells import Cells
from shardstream.counters.folders import SUFFIX, directories, in_memory, make, paths_in, read
from shardstream.counters.layout import ACTIVITIES, HEADER, MAGIC, SIZE, SLOTS_AT, VERSION
from shardstream.counters.processes import boot_id, host_name, is_running, pid_namespace, start_of

__all__ = [
    "PROCESS",
    "Header",
    "begin",
    "clear_dead",
    "end",
    "is_alive",
    "job_name",
    "read_header",
]

PROCESS = Cells()  # what this process counts
_LOG = logging.getLogger("shardstream")
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_WORLDS = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_JOBS = ("SHARDSTREAM_JOB", "SLURM_JOB_NAME")
_RUN = "TORCHELASTIC_RUN_ID"  # keeps two runs of a program on a machine apart
_DATA = frozenset({"loader", "reader", "pack", "warm"})  # what is read or written by these is shown


class Header:
    """What the head of a file says.

    Attributes:
        pid: The process.
        start: When it started, in clock ticks after boot; 0 if unknown.
        began: When it began to count, in seconds since 1970.
        began_monotonic: The same on the monotonic clock.
        namespace: Of its process id.
        activities: What it does; some of `ACTIVITIES`.
        rank: Its rank, -1 if unknown.
        world: How many ranks there are, -1 if unknown.
        boot: The boot of the machine.
        host: The name of the machine.
        job: The name of the job.
        what: What it reads or writes.
    """

    __slots__ = (
        "activities", "began", "began_monotonic", "boot", "host", "job", "namespace", "pid", "rank", "start",
        "what", "world",
    )  # fmt: skip

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.start = start_of(self.pid)
        self.began, self.began_monotonic = time.time(), time.monotonic()
        self.namespace, self.boot, self.host = pid_namespace(), boot_id(), host_name()
        self.activities: frozenset[str] = frozenset()
        self.rank, self.world = _number(_RANKS), _number(_WORLDS)
        self.job = job_name()
        self.what = ""

    def pack(self) -> bytes:
        """The bytes of the header."""
        bits = sum(1 << number for number, name in enumerate(ACTIVITIES) if name in self.activities)
        texts = self.boot, self.host, self.job, self.what
        return HEADER.pack(
            MAGIC, VERSION, SIZE, self.pid, self.start, self.began, self.began_monotonic, self.namespace,
            bits, self.rank, self.world, *(text.encode("utf-8", "replace") for text in texts),
        )  # fmt: skip


def read_header(data: bytes) -> Header | None:
    """The header of a file; None if it is none of this version."""
    if len(data) != SIZE:
        return None
    magic, version, size, *fields = HEADER.unpack_from(data)
    if (magic, version, size) != (MAGIC, VERSION, SIZE):
        return None
    found: Header = Header.__new__(Header)
    found.pid, found.start, found.began, found.began_monotonic, found.namespace, bits = fields[:6]
    found.activities = frozenset(name for number, name in enumerate(ACTIVITIES) if bits >> number & 1)
    found.rank, found.world = fields[6:8]
    texts = [text.partition(b"\0")[0].decode("utf-8", "replace") for text in fields[8:]]
    found.boot, found.host, found.job, found.what = texts
    return found


def job_name() -> str:
    """The name of the job: of the environment, or else of the program, such as "train.py"."""
    for name in _JOBS:
        if found := os.environ.get(name):
            return found
    words = [*getattr(sys, "argv", []), "", ""]
    program = os.path.basename(words[0])
    if program == "__main__.py":
        program = os.path.basename(os.path.dirname(words[0]))
    if program == "shardstream":
        program = f"{program} {words[1]}"
    run = os.environ.get(_RUN, "none")
    return program if run == "none" else f"{program} {run[:6]}"


def _number(names: tuple[str, ...]) -> int:
    for name in names:
        if (value := os.environ.get(name, "")).isdecimal():
            return min(int(value), 2**31 - 1)
    return -1


class _File:
    """The file of this process, if it has one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.header: Header | None = None
        self.path: str | None = None

    def open(self, header: Header) -> None:
        """Make the file, and let the process count in it."""
        places = directories()
        reasons = []
        for place in places:
            try:
                self.path, memory = _create(place, header)
            except OSError as error:
                reasons.append(f"{place}: {error.strerror or error}")
                continue
            # What is counted between these two lines by another thread is lost.
            memory[SLOTS_AT:SIZE] = bytes(PROCESS.memory[SLOTS_AT:SIZE])
            PROCESS.use(memory)
            _at_exit()
            return
        if places:
            _LOG.warning("the counters of this process are not shown to others: %s", "; ".join(reasons))

    def close(self) -> None:
        """Remove the file."""
        path, header = self.path, self.header
        if path is not None and header is not None and header.pid == os.getpid():
            self.path = None
            with contextlib.suppress(OSError):
                os.unlink(path)


_file = _File()


def begin(activity: str, what: str = "", rank: int | None = None, world: int | None = None) -> None:
    """Say what this process does from now on. The first call makes its file; raises nothing.

    Args:
        activity: One of `ACTIVITIES`.
        what: The dataset, checkpoint or log, without credentials. A dataset is shown rather than the others.
        rank: The rank of the process, if the environment does not tell it.
        world: How many ranks there are.
    """
    with _file.lock:
        new = _file.header is None
        header = _file.header = _file.header or Header()
        before = header.pack()
        header.activities |= {activity}
        if what and (activity in _DATA or not header.what):
            header.what = what
        if header.world < 0 and rank is not None and world is not None:
            header.rank, header.world = rank, world
        if new:
            _file.open(header)
        elif (after := header.pack()) != before:
            PROCESS.memory[: len(after)] = after


def end() -> None:
    """Remove the file of this process: for code that leaves by `os._exit`."""
    _file.close()


def _create(place: str, header: Header) -> tuple[str, mmap.mmap]:
    """A new file, and its memory."""
    make(place)
    clear_dead(place)
    number = 0
    while True:
        path = os.path.join(place, f"{header.pid}-{header.start}-{number}{SUFFIX}")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            descriptor = os.open(path, flags, 0o600)
            break
        except FileExistsError:
            number += 1
    try:
        # All of it is written, in one step. A reader never sees half of it. And if the folder is full, this
        # fails, and not a store to the map later, which would kill the process.
        head = header.pack()
        if os.write(descriptor, head + bytes(SIZE - len(head))) != SIZE:
            raise OSError(0, "it is full")
        return path, mmap.mmap(descriptor, SIZE)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def clear_dead(place: str) -> None:
    """Remove the files of processes that have ended, of this machine and this namespace."""
    for path in paths_in(place):
        try:
            pid, start, _ = map(int, os.path.basename(path)[: -len(SUFFIX)].split("-"))
            if is_running(pid, start):
                continue
            header = read_header(read(path, SIZE))
            if header is not None and is_alive(header, path) is False:
                os.unlink(path)
        except (OSError, ValueError, struct.error):
            continue


def is_alive(header: Header, path: str) -> bool | None:
    """Whether the process of a file is running. None: it is in another container, or on another machine."""
    if header.host != host_name():
        return None
    if header.boot != boot_id():
        # The machine was started again. Or it is another one of this name, if the folder may be shared.
        return False if in_memory(path) else None
    return is_running(header.pid, header.start) if header.namespace == pid_namespace() else None


def _at_exit() -> None:
    """Remove the file at the end, also at the end of a child that `multiprocessing` has forked."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _file.close, exitpriority=-100)


def _after_fork() -> None:
    """The child counts from zero, and has a file as soon as it begins something."""
    global _file
    _file = _File()
    PROCESS.use(bytearray(SIZE))


atexit.register(lambda: _file.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
