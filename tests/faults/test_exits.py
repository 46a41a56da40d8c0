"""Programs that end while they still hold iterators: nothing on stderr, and the exit code is theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import KEY, SECRET

_MADE = """
import sys, threading, time
import shardstream as ss

def dataset(url=None, **options):
    return ss.StreamingDataset(url or path, shuffle=ss.Shuffle(3), topology=ss.Topology(), **options)

def slow(sample):
    time.sleep(0.05)
    return sample

def made(kind):
    if kind in ("thread", "process"):
        return ss.StreamingLoader(dataset(), 4, engine=kind)
    if kind == "slow":
        return ss.StreamingLoader(dataset(transform=slow), 4)
    if kind == "dataset":
        return dataset()
    if kind == "mixture":
        return ss.StreamingLoader(ss.Mixture([(dataset(), 1.0)], stop="never"), 4)
    if kind == "memory":
        import fsspec
        fs = fsspec.filesystem("memory")
        fs.put(path, "/packed", recursive=True)
        return ss.StreamingLoader(dataset("memory://packed"), 4)
    if kind == "dali":
        from shardstream.dali.loader import DaliLoader
        return DaliLoader(dataset(), lambda txt: {"size": txt.shape()}, 4, device="cpu")

class Cycle:
    pass

def hold(items):
    cycle = Cycle()
    cycle.me, cycle.items = cycle, items

def iterate(thing):
    while True:
        for _ in thing:
            pass

if __name__ == "__main__":
    path, kind, how = sys.argv[1:]
    thing = made(kind)
    items = iter(thing)
    next(items)
    if how == "cycle":
        hold(items)
        del items
    elif how == "exit":
        sys.exit(3)
    elif how == "error":
        raise LookupError("the user's own")
    elif how == "interrupt":
        print("ready", flush=True)
        time.sleep(60)
    elif how == "thread":
        threading.Thread(target=iterate, args=(thing,), daemon=True).start()
        time.sleep(0.5)
"""
KINDS = ["thread", "process", "slow", "dataset", "mixture", "memory", "dali"]
CODES = {"hold": 0, "cycle": 0, "exit": 3, "thread": 0}
# Each is a program that imports torch, which takes seconds: all ways for the loaders, and for the others
# those in which they differ.
SOME = {
    *(("thread", how) for how in CODES), ("process", "exit"), ("process", "thread"), ("slow", "hold"),
    ("dataset", "cycle"), ("mixture", "hold"), ("memory", "hold"), ("dali", "exit"),
}  # fmt: skip


def cases() -> list[Any]:
    """Every kind and way to end; with --long all of them."""
    return [
        pytest.param(kind, how, CODES[how], marks=() if (kind, how) in SOME else pytest.mark.long)
        for kind in KINDS
        for how in CODES
    ]


def start(documents: Path, tmp_path: Path, kind: str, how: str) -> subprocess.Popen[str]:
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    (tmp_path / "script.py").write_text(_MADE)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(documents), kind, how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "how", "code"), cases())
def test_a_program_that_ends_is_quiet(
    documents: Path, tmp_path: Path, kind: str, how: str, code: int
) -> None:
    process = start(documents, tmp_path, kind, how)
    _, said = process.communicate(timeout=250)
    assert (process.returncode, said) == (code, "")


@pytest.mark.parametrize("kind", ["thread", "process", pytest.param("slow", marks=pytest.mark.long)])
def test_only_the_error_of_the_user_is_told(documents: Path, tmp_path: Path, kind: str) -> None:
    process = start(documents, tmp_path, kind, "error")
    _, said = process.communicate(timeout=250)
    assert process.returncode == 1
    assert said.count("Traceback") == 1
    assert said.endswith("LookupError: the user's own\n")


@pytest.mark.parametrize("kind", ["thread", "process", pytest.param("slow", marks=pytest.mark.long)])
def test_an_interrupt_is_told_once(documents: Path, tmp_path: Path, kind: str) -> None:
    process = start(documents, tmp_path, kind, "interrupt")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=250)
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") == said.count("KeyboardInterrupt") == 1


@pytest.mark.parametrize("times", [1, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(5400)])])
def test_commands_on_a_bucket_end_quietly(weed: Any, corpus: Path, times: int) -> None:
    """On a loaded machine: threads of the store's client must not speak to an interpreter that ends."""
    url, keys = weed.bucket(), {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    environment = os.environ | keys | {"AWS_ENDPOINT_URL": weed.url, "AWS_REGION": "us-east-1"}
    pack = ["pack", str(corpus), url, "--shard-size", "8KiB", "--frame-size", "2KiB", "--workers", "1"]

    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", "shardstream", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
        assert (done.returncode, done.stderr if arguments[0] != "pack" else "") == (0, ""), arguments
        assert "Traceback" not in done.stderr
        assert "terminate" not in done.stderr

    run(*pack)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for number in range(times):
            run("cat", url, "0")
            run("export", url, f"{url}-{number}")
            run(*pack, "--resume")
    finally:
        for process in busy:
            process.kill()
            process.wait()
