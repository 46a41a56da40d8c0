"""What this process has at the moment, and waiting for what gives no event to wait for."""

from __future__ import annotations

import faulthandler
import gc
import os
import threading
import time
from collections.abc import Callable

__all__ = ["descriptors", "ended", "settled", "threads"]


def threads() -> list[str]:
    """The names of the package's own threads."""
    return [one.name for one in threading.enumerate() if one.name.startswith("shardstream")]


def descriptors() -> int:
    """How many files, sockets and pipes are open."""
    return len(os.listdir("/proc/self/fd"))


def ended(condition: Callable[[], object], seconds: float = 90.0) -> bool:
    """Whether the condition comes about in time."""
    limit = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < limit:
        time.sleep(0.005)
    return bool(found)


def settled() -> bool:
    """Whether all threads of iterators that nobody holds end: they see it a moment later."""
    gc.collect()
    if ended(lambda: not threads()):
        return True
    faulthandler.dump_traceback()  # pytest shows what such threads wait for
    return False
