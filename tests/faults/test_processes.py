"""What becomes of a pack when processes die, are interrupted, or meet on one target."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import shardstream as ss
from shardstream.errors import CommitError, OptionError
from shardstream.packing import reservation
from shardstream.storage.store import Store
from tests.watch import ended


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """14 MB that compress slowly, so that packing takes seconds."""
    numbers = random.Random(0)
    path = tmp_path / "corpus.jsonl"
    with path.open("w") as file:
        for _ in range(70):
            file.write(json.dumps({"text": numbers.randbytes(100_000).hex()}) + "\n")
    return path


def start(corpus: Path, dest: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shardstream", "pack", str(corpus), str(dest), "--shard-size", "2MiB"]
    return subprocess.Popen(
        [*command, "--level", "17", *options], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def working(process: subprocess.Popen[str], dest: Path) -> bool:
    """Whether both workers run and a shard lies there."""
    assert process.poll() is None, process.communicate()
    return len(children(process.pid)) == 2 and any(dest.glob("shard-*"))


def test_a_killed_worker_is_replaced_and_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    dest = tmp_path / "packed"
    packer = start(corpus, dest, "--workers", "2")
    assert ended(lambda: working(packer, dest))
    os.kill(children(packer.pid)[0], signal.SIGKILL)
    (dest / ".tmp-0123456789abcdef").write_bytes(b"as if it was killed in the middle of a write")
    _, errors = packer.communicate(timeout=250)
    assert (packer.returncode, errors.count("Traceback")) == (0, 0), errors
    assert ss.verify(str(dest), deep=True).sound
    assert not list(dest.glob(".*"))
    again = start(corpus, tmp_path / "whole", "--workers", "2")
    assert again.communicate(timeout=250)
    assert digests(dest) == digests(tmp_path / "whole")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_workers_of_a_killed_packer_end(corpus: Path, tmp_path: Path) -> None:
    packer = start(corpus, tmp_path / "packed", "--workers", "2")
    assert ended(lambda: working(packer, tmp_path / "packed"))
    workers = children(packer.pid)
    packer.kill()
    packer.communicate()
    assert ended(lambda: not any(map(is_alive, workers)))
    assert not (tmp_path / "packed" / "manifest.json").exists()


def test_ctrl_c_ends_all_processes_at_once(corpus: Path, tmp_path: Path) -> None:
    packer = start(corpus, tmp_path / "packed", "--workers", "2")
    assert ended(lambda: working(packer, tmp_path / "packed"))
    workers = children(packer.pid)
    packer.send_signal(signal.SIGINT)
    _, errors = packer.communicate(timeout=250)
    assert packer.returncode == 130
    assert "Traceback" not in errors
    assert not any(map(is_alive, workers))
    assert not (tmp_path / "packed" / "manifest.json").exists()


def test_of_two_packers_on_one_target_one_commits(corpus: Path, tmp_path: Path) -> None:
    dest = tmp_path / "packed"
    packers = [start(corpus, dest, "--workers", "1") for _ in range(2)]
    ends = [packer.communicate(timeout=250) for packer in packers]
    codes = [packer.returncode for packer in packers]
    assert sorted(codes) == [0, 1], ends
    assert re.search("another packer is at work|already holds a dataset", ends[codes.index(1)][1])
    assert ss.verify(str(dest), deep=True).sound
    assert not list(dest.glob(".*"))


def test_a_target_in_use_is_refused_after_a_while(corpus: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "packed"))
    with reservation.lock_machine(store), pytest.raises(CommitError, match="another packer is at work"):
        ss.pack(corpus, tmp_path / "packed", workers=1)
    assert not (tmp_path / "packed" / "manifest.json").exists()


def test_a_claim_in_an_object_store_is_refused_without_resume(corpus: Path) -> None:
    dest = "memory://claimed/packed"
    store = Store.open(dest)
    store.create(reservation.NAME, msgspec.json.encode(reservation.Reservation("another plan")))
    with pytest.raises(CommitError, match="another packer has claimed"):
        ss.pack(corpus, dest, workers=1)
    with pytest.raises(OptionError, match="other sources or options"):
        ss.pack(corpus, dest, workers=1, resume=True)
    assert not store.exists("manifest.json")
