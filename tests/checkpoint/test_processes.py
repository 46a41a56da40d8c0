"""Forks, threads, Ctrl-C and other processes while a save is on its way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstream as ss

PROGRAM = """
import json, os, signal, sys, threading, time
import numpy as np
import shardstream as ss
url, local, options, work = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
saves = ss.Checkpoints(url, local=local or None, memory="16MiB", storage_options=options)
state = {"x": np.ones(1000)}

def interrupted(call, ready=lambda: True):
    def tell():
        while not ready():
            time.sleep(0.01)
        print("ready", flush=True)
    try:
        threading.Thread(target=tell, daemon=True).start()
        call()
    except KeyboardInterrupt:
        print("interrupted", flush=True)

def fork():
    saves.save(1, state)
    held = saves._lock
    thread = threading.Thread(target=lambda: held.acquire() and threading.Event().wait(), daemon=True)
    thread.start()
    while held.acquire(blocking=False):  # until the other thread has it, as a thread that saves would
        held.release()
    child = os.fork()
    if not child:
        assert saves.wait()
        assert saves.steps() == []
        sys.exit(0)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit(0)

def wait():
    saves.save(1, state)
    interrupted(saves.wait)
    saves.wait()

def stage():
    large = {f"t{n}": np.ones(1 << 20) for n in range(8)}  # more than the memory
    interrupted(lambda: saves.save(1, large), lambda: saves._saver.pool.empty)
    try:
        saves.save(1, state)
        print("lost", flush=True)
    except ss.StorageError:  # what ended the first one: Ctrl-C, or the store before it
        pass
    saves.save(1, state)
    saves.wait()

def load():
    saves.save(1, state | {"y": {"a": 1}})
    saves.wait()
    class Slow:
        def state_dict(self): return {}
        def load_state_dict(self, state): os.kill(os.getpid(), signal.SIGINT)
    interrupted(lambda: saves.load({"x": state["x"], "y": Slow()}))
    assert saves.load({"x": state["x"]}) == 1

{"fork": fork, "wait": wait, "stage": stage, "load": load}[work]()
print(saves.steps(), flush=True)
"""


@pytest.fixture
def started(tmp_path: Path, weed: Any, proxy_to: Callable[..., Any]) -> Iterator[Callable[[str], Any]]:
    """Starts the program while the store takes no tensors; gives the process, and how to let them pass."""
    proxy = proxy_to(weed)
    url, programs = f"{weed.bucket()}/run", []
    timeouts = {"connect": 0.5, "read": 0.5, "slowest": "64MiB"}
    options = weed.options(proxy.url) | {"timeouts": timeouts, "retry": {"attempts": 100, "pause": 0.05}}

    def start(work: str, local: str = "") -> tuple[subprocess.Popen[str], Callable[[], None], ss.Checkpoints]:
        if work != "load":
            proxy.set(dead=True, only=lambda method, path: method == "PUT" and "state-" in path)
        arguments = [sys.executable, "-c", PROGRAM, url, local, json.dumps(options), work]
        programs.append(
            subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return programs[-1], proxy.set, ss.Checkpoints(url, storage_options=weed.options())

    yield start
    for program in programs:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("local", [False, True])
def test_a_fork_ends_while_its_parent_saves_and_commits_nothing(
    started: Any, tmp_path: Path, local: bool
) -> None:
    program, let, saves = started("fork", str(tmp_path / "local") if local else "")
    assert program.stdout.readline() == "child 0\n", program.communicate()
    assert saves.steps() == []
    let()
    _, errors = program.communicate(timeout=60)  # it ends with its save on the way
    assert program.returncode == 0, errors
    assert saves.steps() == [1]


@pytest.mark.parametrize("work", ["wait", "stage", "load"])
def test_ctrl_c_ends_the_call_and_not_the_handle(started: Any, work: str) -> None:
    program, let, saves = started(work)
    assert program.stdout.readline() == "ready\n", program.communicate()
    if work != "load":
        program.send_signal(signal.SIGINT)
    assert program.stdout.readline() == "interrupted\n"
    let()
    out, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert out.split("\n")[-2] == "[1]"
    assert "lost" not in out
    assert saves.load({"x": np.zeros(1000)}) == 1


def test_a_thread_saves_while_another_loads(tmp_path: Path) -> None:
    saves = ss.Checkpoints(str(tmp_path / "run"), local=str(tmp_path / "local"), keep=2)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for step in range(10):
                saves.save(step, {"x": np.full(1000, step)}, busy="wait")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        state: dict[str, Any] = {"x": None}
        step = saves.load(state)
        assert step is None or (state["x"] == step).all()
    thread.join()
    assert saves.wait()
    assert errors == []
    assert saves.steps() == [8, 9]


RACE = """
import sys
import numpy as np
import shardstream as ss
name, url, local = sys.argv[1:]
saves = ss.Checkpoints(url, local=local)
print("ready", flush=True)
input()
won = []
for step in range(6):
    try:
        saves.save(step, {"x": np.full(5000, int(name)), "by": name})
        saves.wait()
        won.append(step)
    except ss.StateError:
        pass
print(won)
"""


def test_two_processes_in_one_folder_commit_each_step_once(tmp_path: Path) -> None:
    url, local = str(tmp_path / "run"), str(tmp_path / "local")
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(name), url, local],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in range(2)
    ]  # fmt: skip
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        told = [program.communicate(timeout=60) for program in programs]
    finally:
        for program in programs:
            program.kill()
    assert [program.returncode for program in programs] == [0, 0], told
    won = [json.loads(out) for out, _ in told]
    assert sorted(won[0] + won[1]) == list(range(6))
    saves = ss.Checkpoints(url, local=local)
    for step in range(6):
        state: dict[str, Any] = {"x": None, "by": None}
        assert saves.load(state, step=step) == step
        assert (state["x"] == int(state["by"])).all()
        assert step in won[int(state["by"])]
    assert saves.skipped == []


def test_the_lock_of_a_folder_ends_with_its_process_and_not_with_a_fork(tmp_path: Path) -> None:
    from shardstream.checkpoint.holds import Hold

    folder = str(tmp_path / "attempt")
    hold = Hold.shared(folder)
    assert Hold.alone(folder) is None
    again = Hold.shared(folder)
    (read, write), (told, tell) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.write(tell, b"x")
        os.read(read, 1)  # until the parent closes it
        os._exit(0)
    assert os.read(told, 1) == b"x"
    for descriptor in (read, told, tell):
        os.close(descriptor)
    hold.release()
    assert Hold.alone(folder) is None
    again.release()
    alone = Hold.alone(folder)
    assert alone is not None
    assert Hold.alone(folder) is None
    alone.release()
    os.close(write)
    os.waitpid(child, 0)
