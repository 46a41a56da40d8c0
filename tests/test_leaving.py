"""Leaving takes no longer than the sample that is being made, however it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from tests.distributed import launch

SLOW = """
import sys, threading, time
import shardstream as ss

running = threading.Event()

def slow(value):
    with open("made", "ab", buffering=0) as file:
        file.write(b".")
        if file.tell() == 5:
            print("running", flush=True)
            running.set()
    time.sleep(0.4)
    return value

def close(one):
    running.wait()
    one.close()

def main():
    url, way, end = sys.argv[1:]
    ds = ss.StreamingDataset(url, transform=slow)
    one = ss.StreamingLoader(ds, 64, threads=2, engine="process" if way == "process" else "thread")
    if way == "mixture":
        one = ss.StreamingLoader(ss.Mixture([(ds, 1), (ss.StreamingDataset(url), 1)]), 64, threads=2)
    if way == "dataset":
        one = ds
    iterator = iter(one)
    if end == "interrupt":
        for _ in iterator:
            pass
    if end == "close":
        threading.Thread(target=close, args=(one,)).start()
        for _ in iterator:
            pass
        print("left", flush=True)
    if end == "exit":
        one = iter(ss.StreamingLoader(ds, 1, threads=2))
        for _ in range(5):
            next(one)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("way", "end"),
    [
        pytest.param("loader", "interrupt", marks=pytest.mark.long),
        ("dataset", "interrupt"),
        ("process", "interrupt"),
        ("loader", "close"),
        pytest.param("mixture", "interrupt", marks=pytest.mark.long),
        pytest.param("mixture", "close", marks=pytest.mark.long),
        ("loader", "exit"),
    ],
)
def test_a_program_ends_soon(corpus: Path, tmp_path: Path, way: str, end: str) -> None:
    ss.pack(corpus, tmp_path / "packed", workers=1)
    (tmp_path / "slow.py").write_text(SLOW)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "slow.py"), str(tmp_path / "packed"), way, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "running\n"
        if end == "interrupt":
            run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=250)
    finally:
        run.kill()
        run.communicate()
    # Samples after that come from a machine that is slow to tell; a batch is 64.
    assert len((tmp_path / "made").read_bytes()) < 60
    assert run.returncode == (-signal.SIGINT if end == "interrupt" else 0), errors
    if end != "interrupt":
        assert errors == ""


@pytest.mark.parametrize("kind", ["transform", "collate", "mixture"])
def test_a_dropped_iterator_makes_no_sample_more(corpus: Path, tmp_path: Path, kind: str) -> None:
    ss.pack(corpus, tmp_path / "packed", workers=1)
    made = []

    def slow(sample: Any) -> Any:
        made.append(1)
        time.sleep(0.02)
        return sample

    ds: Any = ss.StreamingDataset(tmp_path / "packed", transform=slow)
    if kind == "mixture":
        ds = ss.Mixture([(ds, 1), (ss.StreamingDataset(tmp_path / "packed"), 1)])
    for way in ("close", "drop", "loader"):
        loader = ss.StreamingLoader(ds, 8, threads=3, collate=list if kind == "collate" else None)
        iterator = iter(loader)
        next(iterator)
        if way == "close":
            iterator.close()  # type: ignore[attr-defined]
        elif way == "loader":
            loader.close()
            loader.close()
            assert next(iterator, None) is None
        del iterator
        count = len(made)
        time.sleep(0.3)
        assert len(made) <= count + 3
        assert launch.ended(
            lambda: not [one for one in threading.enumerate() if one.name.startswith("shardstream")]
        )
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (0, 8)
        loader.load_state_dict(state)
        assert len(list(loader)) == loader.ds.total // 8 - 1


def test_what_decides_the_batches_is_read_only(corpus: Path, tmp_path: Path) -> None:
    ss.pack(corpus, tmp_path / "packed", workers=1)
    loader = ss.StreamingLoader(ss.StreamingDataset(tmp_path / "packed"), 8, last="short")
    assert (loader.batch_size, loader.last) == (8, "short")
    for name in ("batch_size", "last"):
        with pytest.raises(AttributeError):
            setattr(loader, name, getattr(loader, name))
