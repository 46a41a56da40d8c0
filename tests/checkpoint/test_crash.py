"""SIGKILL and a full disk at every system call by which a save changes its folder, and programs that end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstream as ss
from tests.checkpoint.loop import state


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.checkpoint.loop", *map(str, arguments)]


def run(arguments: list[str], inject: str = "") -> subprocess.CompletedProcess[str]:
    strace = ["strace", "-f", "-o", os.devnull, "-e", f"inject={inject}"] if inject else []
    return subprocess.run([*strace, *arguments], capture_output=True, text=True, timeout=120)


def whole(local: Path | None) -> int:
    """The newest step that is whole on the local disk and was not committed; 0 if there is none."""
    found = [] if local is None else [path.parent for path in local.glob("*/step-*/*/pending.json")]
    return max(
        (int(path.parent.name[5:]) for path in found if (path / "rank-00000.json").exists()), default=0
    )


def check(folder: Path, least: int, local: Path | None = None) -> int:
    """The newest committed checkpoint loads, and is not older than `least`; its step."""
    least = max(least, whole(local))
    saves = ss.Checkpoints(str(folder), local=None if local is None else str(local))
    loaded: dict[str, Any] = {"w": None, "step": None, "more": {}}
    step = saves.load(loaded)
    assert step is not None
    assert step >= least
    assert saves.skipped == []
    expected = state(step)
    assert np.array_equal(loaded["w"], expected["w"])
    assert loaded["step"] == step
    assert all(np.array_equal(each, expected["more"][name]) for name, each in loaded["more"].items())  # type: ignore[index]
    assert len(loaded["more"]) == 3
    assert whole(local) == 0
    return step


def goes_on(folder: Path, after: int, local: Path | None = None) -> None:
    """The next job saves the next step, and steps that are not kept go."""
    saves = ss.Checkpoints(str(folder), keep=2, local=None if local is None else str(local))
    for step in (after + 1, after + 2):
        saves.save(step, state(step), busy="wait")
    saves.wait()
    assert check(folder, after + 2) == after + 2
    assert saves.steps() == [after + 1, after + 2]
    if local is not None:
        kept = {path.name for path in local.glob("*/*")}
        assert kept <= {f"step-{after + 1}", f"step-{after + 2}", f"step-{after}"}
        assert len(list(local.glob("*/*/*"))) == len(kept) == 2


PWRITE = "pwrite64,pwritev,pwritev2"
CALLS = [
    PWRITE,
    "write",
    "fsync",
    "rename",
    "link",
    "unlink",
    "rmdir",
    "mkdir",
    "openat",
    "fallocate",
]


def crash(tmp_path: Path, call: str, fault: str, numbers: range, local: bool) -> int:
    """Hit the n-th call of a job that saves steps 1 to 3, for each n, until none is left; how often."""
    hits = 0
    for when in numbers:
        folder = tmp_path / f"run-{when}"
        before = ss.Checkpoints(str(folder))
        before.save(0, state(0))
        before.wait()
        disk = tmp_path / f"local-{when}" if local else None
        arguments = [folder, 1, 4, *(("--local", disk) if local else ())]
        done = run(command(*arguments), f"{call}:{fault}:when={when}{'+' if 'error' in fault else ''}")
        if done.returncode == 0 and "error" not in done.stderr.lower() and "not saved" not in done.stderr:
            break
        hits += 1
        lines = [int(line) for line in done.stdout.split() if line.isdigit()]
        # The save before the last one that was begun is committed: `busy="wait"`.
        newest = check(folder, max(lines, default=1) - 1 if "begun" in done.stdout else 0, disk)
        goes_on(folder, newest, disk)
    return hits


@pytest.mark.parametrize("call", ["fsync", "link", "rename"])
def test_a_job_that_is_killed_leaves_the_last_checkpoint(tmp_path: Path, call: str) -> None:
    assert crash(tmp_path, call, "signal=SIGKILL", range(1, 60, 5), local=False) >= 1


def test_a_job_that_is_killed_while_it_sends_is_finished_by_the_next(tmp_path: Path) -> None:
    assert crash(tmp_path, "rename", "signal=SIGKILL", range(1, 8), local=True) >= 3


@pytest.mark.parametrize("call", [PWRITE, "fsync"])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, call: str) -> None:
    assert crash(tmp_path, call, "error=ENOSPC", range(1, 30, 4), local=False) >= 1


@pytest.mark.long
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_job_that_is_killed_at_any_call(tmp_path: Path, call: str, local: bool) -> None:
    many = call in ("openat", "write", "mkdir")
    assert crash(tmp_path, call, "signal=SIGKILL", range(1, 2000, 20 if many else 1), local) >= 1


@pytest.mark.long
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("call", [PWRITE, "fsync", "rename", "link", "fallocate", "writev"])
def test_a_disk_that_is_full_from_any_call_on(tmp_path: Path, call: str, local: bool) -> None:
    crash(tmp_path, call, "error=ENOSPC", range(1, 500), local)


def test_a_program_that_ends_waits_for_its_save(tmp_path: Path) -> None:
    done = run(command(tmp_path / "run", 0, 3, "--leave", "--local", tmp_path / "local"))
    assert done.returncode == 0, done.stderr
    assert "False" in done.stdout  # torch is not needed
    assert check(tmp_path / "run", 2) == 2


def test_a_program_that_ends_says_that_its_save_has_failed(tmp_path: Path) -> None:
    (tmp_path / "run" / "step-0").mkdir(parents=True)
    (tmp_path / "run" / "step-1").write_text("a file where a folder should be")
    done = run(command(tmp_path / "run", 1, 2, "--leave"))
    assert "step 1 was not saved: StorageError" in done.stderr


def test_a_save_that_is_killed_while_it_prunes_leaves_whole_checkpoints(tmp_path: Path) -> None:
    for when in range(1, 40, 4):
        folder = tmp_path / f"run-{when}"
        saves = ss.Checkpoints(str(folder))
        for step in range(4):
            saves.save(step, state(step), busy="wait")
        saves.wait()
        done = run(command(folder, 4, 6), f"unlink:signal=SIGKILL:when={when}")
        newest = check(folder, 3)
        for step in ss.Checkpoints(str(folder)).steps():
            assert ss.Checkpoints(str(folder)).load({"w": None}, step=step) == step
        goes_on(folder, newest)
        if done.returncode == 0:
            break
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert when > 1
