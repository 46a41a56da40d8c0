"""Iterators that are dropped while a server says nothing do not wait for it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from tests.faults.cached import small
from tests.faults.conftest import Target
from tests.watch import ended, settled, threads

# Long enough that what is seen to end has not ended by itself.
PATIENT = {"retry": {"deadline": 900.0}, "timeouts": {"connect": 900.0, "read": 900.0}}


def silence(target: Target, ending: str) -> None:
    """No answer any more for such files, but for those of the first five shards, of 27 samples each."""
    silent = re.compile(rf"shard-0000(?!0[0-4]).*\{ending}$")
    target.proxy.set(dead=True, only=lambda method, path: bool(silent.search(path)))


def read_until_silent(target: Target, iterator: Any) -> None:
    """Take what comes, and have Ctrl-C pressed once something has been asked for that never comes."""

    def press() -> None:
        assert ended(lambda: target.proxy.counts.injected["dead"], 60)
        assert threads()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        list(iterator)
    pressing.join()


def dataset(target: Target, cache: Any = None, **options: Any) -> ss.StreamingDataset:
    return ss.StreamingDataset(
        target.url, decode=False, storage_options=target.options | PATIENT, cache=cache, **options
    )


ENDINGS, WAYS = [".index", ".zst"], ["loader", "dataset", "cached"]
# By HTTP all ways; how requests of the others end does not depend on who reads.
SOME = [
    *(("http", way, ending) for way in WAYS for ending in ENDINGS),
    ("s3", "loader", ".zst"), ("s3", "cached", ".index"), ("obstore", "loader", ".index"),
    ("obstore", "cached", ".zst"),
]  # fmt: skip
CASES = [
    pytest.param(kind, way, ending, marks=() if (kind, way, ending) in SOME else pytest.mark.long)
    for kind in ("http", "s3", "obstore")
    for way in WAYS
    for ending in ENDINGS
]


@pytest.mark.parametrize(("target", "way", "ending"), CASES, indirect=["target"])
def test_its_threads_end(target: Target, tmp_path: Path, way: str, ending: str) -> None:
    ds = dataset(target, small(tmp_path) if way == "cached" else None)
    silence(target, ending)
    read_until_silent(target, iter(ss.StreamingLoader(ds, 8) if way == "loader" else ds))
    assert settled(), threads()
    # Nothing of it is in the way of the next one.
    target.proxy.set()
    assert sum(1 for _ in ds) == 700


LEAVES = """
import sys
import shardstream as ss
url, options = eval(sys.stdin.read())
ds = ss.StreamingDataset(url, decode=False, storage_options=options)
for number, batch in enumerate(ss.StreamingLoader(ds, 8)):
    if number == 4:
        raise SystemExit(3)
"""


@pytest.mark.parametrize(
    "target", ["http", pytest.param("s3", marks=pytest.mark.long), "obstore"], indirect=True
)
def test_a_program_that_leaves_its_loop_ends(target: Target) -> None:
    silence(target, ".zst")
    done = subprocess.run(
        [sys.executable, "-c", LEAVES], input=repr((target.url, target.options | PATIENT)),
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (3, "")
