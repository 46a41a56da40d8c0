"""How many cores this process may use."""

from __future__ import annotations

import math
import os

__all__ = ["cores"]

_LIMIT = "/sys/fs/cgroup/cpu.max"


def cores() -> int:
    """The cores that this process is bound to, and at most the limit of its container.

    Schedulers such as Slurm bind a job to some cores of its node, and containers have a limit in their
    cgroup: the number of cores of the machine says nothing there.

    Source: cpu.max in https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(_LIMIT, encoding="ascii") as file:
            quota, period = map(int, file.read().split())
    except (OSError, ValueError):  # there is no such file, or no limit in it
        return bound
    return max(1, min(bound, math.ceil(quota / period)))
