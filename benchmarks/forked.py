"""Work in a process of its own, whose requests are counted phase by phase."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.proxy import Proxy

Row = dict[str, Any]


def memory(kind: str = "RssAnon") -> float:
    """MB of memory of this process: anonymous memory alone, or all with "VmRSS"."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3


def forked(proxy: Proxy, work: Callable[[Callable[[str, dict[str, float]], None]], None]) -> list[Row]:
    """The phases of `work`, which runs in a process of its own, each with the requests that passed in it."""
    rows: list[Row] = []
    (up_end, up), (down, down_end) = os.pipe(), os.pipe()
    proxy.reset_counts()
    child = os.fork()
    if not child:
        try:

            def tell(phase: str, found: dict[str, float]) -> None:
                os.write(up, json.dumps({"phase": phase, **found}).encode() + b"\n")
                os.read(down, 1)

            work(tell)
        except BaseException:  # noqa: BLE001 - it is a process of its own
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(up)
    with os.fdopen(up_end) as told:
        for line in told:
            rows.append(json.loads(line))
            rows[-1] |= {"requests": proxy.counts.requests, "bytes": proxy.counts.body_bytes}
            proxy.reset_counts()
            os.write(down_end, b".")
    os.close(down_end)
    os.close(down)
    os.waitpid(child, 0)
    return rows
