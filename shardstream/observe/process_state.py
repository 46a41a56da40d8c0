"""What the system knows of a process: whether it is stopped, and its memory. For Linux; elsewhere unknown."""

from __future__ import annotations

import mmap

from shardstream.counters.snapshots import Snapshot

__all__ = ["resident_bytes", "system_state"]

_STATES = {"T": "stopped", "t": "stopped by a debugger", "Z": "ended", "X": "ended"}


def system_state(process: Snapshot) -> str:
    """Why a process cannot run, such as "stopped"; "" if it can, or if that is not known."""
    if not process.alive:
        return ""
    try:
        with open(f"/proc/{process.header.pid}/stat", "rb") as file:
            # The name of the program, in parentheses, may have spaces and parentheses itself.
            return _STATES.get(file.read().rpartition(b")")[2].split()[0].decode(), "")
    except (OSError, IndexError):
        return ""


def resident_bytes(process: Snapshot) -> int | None:
    """The memory of a process that is in RAM, shared pages included; None if that is not known."""
    if not process.alive:
        return None
    try:
        with open(f"/proc/{process.header.pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return None
