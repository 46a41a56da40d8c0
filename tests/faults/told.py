"""Programs that meet credentials, and all that they say: for tests that no secret is in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

CANARY = "cAnArYsEcReT"

SAYS = """
import logging, sys, traceback
from concurrent.futures import ThreadPoolExecutor
logging.basicConfig(level=logging.DEBUG)
import shardstream as ss
from shardstream.storage.inputs import expand, open_input, read_slice
from shardstream.storage.store import Store
quick = {
    "retry": ss.Retry(attempts=2, deadline=0.8, span=0.0, pause=0.02),
    "timeouts": ss.Timeouts(connect=0.3, read=0.3),
}
def read(url, options):
    for batch in ss.StreamingLoader(ss.StreamingDataset(url, storage_options=options), 4):
        pass
tries = [
    lambda url, options: Store.open(url, options).write("x", b"x"),
    lambda url, options: Store.open(url, options).create("x", b"x"),
    lambda url, options: Store.open(url, options).list(),
    lambda url, options: Store.open(url, options).exists("x"),
    lambda url, options: Store.open(url, options).delete("x"),
    lambda url, options: read_slice(url, 0, 1, options),
    lambda url, options: open_input(url, options).read(),
    lambda url, options: expand([url + "/*"], options),
    lambda url, options: expand([url], options),
    read,
]
def said(attempt, url, options):
    try:
        attempt(url, options | quick)
    except ss.ShardstreamError as error:
        return f"{traceback.format_exc()}{error!r} {error.__cause__!r} {error.__context__!r}"
places = eval(sys.stdin.read())
# Nearly all of the time goes into waiting for a server that fails: all at once.
with ThreadPoolExecutor(16) as pool:
    ran = [[pool.submit(said, attempt, *place) for attempt in tries] for place in places]
for some in ran:
    found = [one.result() for one in some if one.result()]
    print(*found, f"failed {len(found)} times", sep="\\n")
"""
FAULTS: list[dict[str, Any]] = [
    {}, {"status": (503,), "share": 1.0}, {"dead": True}, {"status": (403,), "share": 1.0}, {"reset": 1.0},
]  # fmt: skip


def run_program(
    program: str, given: object, folder: Path, environment: dict[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder`, with `given` on its standard input and nothing else of this environment."""
    known = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "HOME": str(folder)}
    known |= {"AWS_EC2_METADATA_DISABLED": "true", **(environment or {})}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=repr(given), env=known, cwd=folder, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def said_of(places: list[tuple[str, dict[str, Any]]], folder: Path, **environment: str) -> str:
    """All that is said when requests to these places fail; CANARY is not in it."""
    done = run_program(SAYS, places, folder, environment, 280)
    said = done.stdout + done.stderr
    assert CANARY not in said, [line for line in said.splitlines() if CANARY in line][:5]
    return said
