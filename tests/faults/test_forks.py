"""A fork of a process that iterates: it may use or end nothing of its parent's, and has all of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = '''
import gc, multiprocessing, os, signal, sys
import shardstream as ss

path, kind = sys.argv[1:]
SAMPLES = 100

def dataset(url=path):
    return ss.StreamingDataset(url, shuffle=ss.Shuffle(3), topology=ss.Topology())

def keys(items):
    found = []
    for item in items:
        named = item["__key__"]
        found += [named] if isinstance(named, str) else named
    return found

def things():
    """The object that is iterated."""
    if kind in ("thread", "process"):
        return ss.StreamingLoader(dataset(), 4, last="short", engine=kind)
    if kind == "dataset":
        return dataset()
    if kind == "mixture":
        return ss.Mixture([(dataset(), 1.0)], stop="all")
    if kind == "dali":
        from shardstream.dali.loader import DaliLoader
        return DaliLoader(dataset(), lambda txt: {"size": txt.shape()}, 4, device="cpu", last="short")

class Child:
    """Runs in a fork; its exit code is checked by the parent."""
    def __init__(self, work):
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(200)
            try:
                work()
            except SystemExit:
                raise
            except BaseException as error:
                print("child:", type(error).__name__, error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
    def check(self, name, code=0):
        status = os.waitpid(self.pid, 0)[1]
        assert os.waitstatus_to_exitcode(status) == code, (name, status)

def reads():
    for _ in range(3):
        try:
            next(items)
        except ss.errors.OptionError as error:
            assert "begun by another process" in str(error), error
        else:
            raise AssertionError("the child got an item")

def drops():
    global items
    del items
    gc.collect()

def closes():
    items.close()

def leaves():
    sys.exit(7)

def begins():
    begun = iter(thing)
    first = keys([next(begun)])
    assert len(set(first + keys(begun))) == SAMPLES
    thing.set_epoch(0)
    assert len(set(keys(thing))) == SAMPLES
    if kind in ("thread", "process"):
        thing.load_state_dict(thing.state_dict())

def forked():
    pass

ALL = [(reads, 0), (drops, 0), (closes, 0), (leaves, 7), (begins, 0)]
# DALI itself is no more after a fork: it crashes where a child ends it or begins anew.
WORK = ALL[:3] if kind == "dali" else ALL

if __name__ == "__main__":
    signal.alarm(250)
    thing = things()
    items, found = iter(thing), []
    for work, code in WORK:
        found += keys([next(items)])
        Child(work).check(work.__name__, code)
    found += keys([next(items)])
    process = multiprocessing.get_context("fork").Process(target=forked)
    process.start()
    process.join()
    assert process.exitcode == 0
    os.system("true")
    found += keys(items)
    assert len(found) == len(set(found)) == SAMPLES, (len(found), len(set(found)))
    sys.exit(5)
'''


def run(script: str, tmp_path: Path, *arguments: object, timeout: float = 280) -> None:
    """Run a script that ends with exit code 5 and prints nothing."""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert (done.returncode, done.stderr) == (5, "")


@pytest.mark.parametrize("kind", ["thread", "process", "dataset", "mixture", "dali"])
def test_a_fork_in_mid_iteration(documents: Path, tmp_path: Path, kind: str) -> None:
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    run(_SCRIPT, tmp_path, documents, kind)


_LOCKS = """
import os, signal, sys, threading
import shardstream as ss

def keys(items):
    return [key for batch in items for key in batch["__key__"]]

def work():
    while not over:
        for _ in loader:
            if over:
                return

if __name__ == "__main__":
    signal.alarm(250)
    ds = ss.StreamingDataset(sys.argv[1], shuffle=ss.Shuffle(3), topology=ss.Topology(), cache=sys.argv[2])
    loader = ss.StreamingLoader(ds, 4, last="short")
    over = False
    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(int(sys.argv[3])):
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            os._exit(0 if len(set(keys(loader))) == 100 else 1)
        assert os.waitpid(pid, 0)[1] == 0
    over = True
    for thread in threads:
        thread.join()
    sys.exit(5)
"""


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.long)])
def test_locks_that_other_threads_hold_while_a_process_forks(
    documents: Path, tmp_path: Path, count: int
) -> None:
    run(_LOCKS, tmp_path, documents, tmp_path / "cache", count, timeout=200 + count)
