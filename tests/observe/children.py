"""Processes that count something, and then wait."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_CODE = """
import sys
from shardstream.counters import page, recorder
from shardstream.counters.layout import slot
page.begin("loader", "s3://bucket/corpus")
for pair in sys.argv[1:]:
    name, _, value = pair.partition("=")
    recorder.add(slot(name), float(value))
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def counting(number: int, directory: Path, **values: float) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of the job "train.py", rank 0 and so on, whose counters have these values.

    Args:
        number: How many.
        directory: Where their files are.
        values: Counters by name.
    """
    pairs = [f"{name}={value}" for name, value in values.items()]
    variables = {"SHARDSTREAM_COUNTERS": str(directory), "SHARDSTREAM_JOB": "train.py"}
    started = []
    try:
        for rank in range(number):
            environment = {**os.environ, **variables, "RANK": str(rank), "WORLD_SIZE": str(number)}
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", _CODE, *pairs],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
            )
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        yield started
    finally:
        for process in started:
            process.communicate()
