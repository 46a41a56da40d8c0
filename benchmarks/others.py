"""Whether other programs disturb a measurement: what they take of the processor meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Watch", "still"]

_TICK = os.sysconf("SC_CLK_TCK")
_LOOK = 0.5  # seconds


@dataclass(frozen=True)
class _Spent:
    at: float  # seconds, monotonic
    machine: float  # seconds of processor time, all programs
    ours: float  # of this process and its children, and theirs


def _now() -> _Spent:
    user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # The name of the program, in brackets, may have spaces.
                words = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            # User and system time, and that of children that have ended.
            parents[int(folder.name)], ticks[int(folder.name)] = int(words[1]), sum(map(int, words[11:15]))
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    total = sum(ticks.get(pid, 0) for pid in ours)
    return _Spent(time.monotonic(), (user + nice + system + irq + soft) / _TICK, total / _TICK)


class Watch:
    """From now on."""

    def __init__(self) -> None:
        self._began = _now()

    def others(self) -> float:
        """How many cores other programs have taken since then, on the average."""
        now, began = _now(), self._began
        return max(0.0, now.machine - began.machine - now.ours + began.ours) / (now.at - began.at)

    def ours(self) -> float:
        """Seconds of processor time of this process and its children since then."""
        return _now().ours - self._began.ours


def still(most: float, seconds: float) -> float:
    """Wait until other programs take at most so many cores, or the time is over; returns what they take."""
    until = time.monotonic() + seconds
    while True:
        watch = Watch()
        time.sleep(_LOOK)
        found = watch.others()
        if found <= most or time.monotonic() >= until:
            return found
