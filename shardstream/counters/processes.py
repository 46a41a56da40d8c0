"""Which process a number means: the same process id comes again, its start does not."""

from __future__ import annotations

import contextlib
import functools
import os
import platform

__all__ = ["boot_id", "host_name", "is_running", "pid_namespace", "start_of"]


def start_of(pid: int) -> int:
    """When a process started, in clock ticks after boot; 0 if it is gone, or the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name of the program, in parentheses, may have spaces and parentheses itself.
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def is_running(pid: int, start: int) -> bool:
    """Whether the process with this id that started then is there. A start of 0 is unknown."""
    now = start_of(pid)
    if now:
        return start in (0, now)
    if os.path.isdir("/proc/self"):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


@functools.lru_cache(maxsize=1)
def boot_id() -> str:
    """What names this boot of the machine; "" if the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


@functools.lru_cache(maxsize=1)
def host_name() -> str:
    """The name of this machine."""
    return os.uname().nodename if hasattr(os, "uname") else platform.node()


def pid_namespace() -> int:
    """What names the namespace in which the ids of processes mean something; 0 if the system has none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
