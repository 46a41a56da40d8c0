"""The cores that a process may use, not those that the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardstream import cores as module
from shardstream.cores import cores


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the container's limit, which is not there at first."""
    path = tmp_path / "cpu.max"
    monkeypatch.setattr(module, "_LIMIT", str(path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, 8),
        ("max 100000\n", 8),
        ("400000 100000\n", 4),
        ("250000 100000\n", 3),
        ("10000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("nonsense", 8),
    ],
)
def test_limit_of_a_container(limit: Path, text: str | None, expected: int) -> None:
    if text is not None:
        limit.write_text(text)
    assert cores() == expected


def test_a_process_that_is_bound_to_a_core() -> None:
    first = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{first}]); import shardstream.cores as c; print(c.cores())"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.strip() == b"1"
