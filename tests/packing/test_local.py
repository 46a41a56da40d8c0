"""Worker processes: what the packer says of one that died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shardstream.errors import OptionError, StorageError
from shardstream.packing.engines.local import Worker
from shardstream.packing.engines.processes import run_tasks


def test_a_worker_that_died_is_named_and_stops_without_another_error() -> None:
    worker = Worker(len, None, ())
    worker.process.kill()
    worker.process.wait(90)
    with pytest.raises(StorageError, match="ended unexpectedly"):
        worker.call("task")
    worker.stop()


def deadly(job: str, task: int) -> int:
    """Kill this process: always in task 1, once in task 2."""
    if task == 1 or (task == 2 and not os.path.exists(job)):
        Path(job).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_worker_that_dies_is_replaced_and_a_task_that_kills_three_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # where a worker finds this module
    assert sorted(run_tasks(deadly, str(tmp_path / "killed"), [0, 2, 3, 4], 2)) == [0, 2, 3, 4]
    with pytest.raises(StorageError, match=r"task 1: 3 workers died in it; .*exit code -9.*out of memory"):
        list(run_tasks(deadly, str(tmp_path / "killed"), [0, 1, 2, 3], 2))


_SCRIPT = """
import signal, sys
import shardstream as ss

class Token(str):
    pass

if __name__ == "__main__":
    signal.alarm(60)
    try:
        options = {"token": Token("x")}
        sizes = {"shard_size": "4KiB", "frame_size": "1KiB"}
        ss.pack(sys.argv[1], sys.argv[2], workers=2, storage_options=options, **sizes)
    except ss.errors.OptionError as error:
        print(error)
"""


def pack_from(how: str, corpus: Path, tmp_path: Path) -> str:
    (tmp_path / "script.py").write_text(_SCRIPT)
    arguments = {
        "file": [str(tmp_path / "script.py")], "stdin": ["-"], "command": ["-c", _SCRIPT]
    }[how]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments, str(corpus), str(tmp_path / "packed")],
        input=_SCRIPT, capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("how", ["file", "stdin", "command"])
def test_an_option_that_workers_cannot_import_is_an_error(how: str, corpus: Path, tmp_path: Path) -> None:
    said = pack_from(how, corpus, tmp_path)
    assert "Token" in said
    assert "workers=1" in said


class UnmadeError(Exception):
    """Can be pickled, and not made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def answers(job: object, task: int) -> object:
    if task == 1:
        raise UnmadeError(1, 2)
    return threading.Lock() if task == 2 else task


def test_what_is_answered_and_cannot_be_sent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # where a worker finds this module
    for task, said in ((1, "UnmadeError"), (2, "lock")):
        with pytest.raises(RuntimeError, match=said):
            list(run_tasks(answers, None, [0, task, 0], 2))


def test_what_cannot_be_sent_at_all_is_an_error() -> None:
    with pytest.raises(OptionError, match="workers=1"):
        list(run_tasks(len, threading.Lock(), [0, 1], 2))
