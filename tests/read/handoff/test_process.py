"""engine="process": the same batches as the threads', and nothing left however it ends."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import shardstream as ss
from shardstream.errors import OptionError, StorageError


@pytest.fixture
def packed(corpus: Path, tmp_path: Path) -> Path:
    ss.pack(corpus, tmp_path / "packed", workers=1, frame_size="4KiB", shard_size="16KiB")
    return tmp_path / "packed"


def loader(url: Path, engine: str = "process", batch_size: int = 8, **options: Any) -> ss.StreamingLoader:
    ds = ss.StreamingDataset(url, shuffle=ss.Shuffle(1), topology=ss.Topology(), **options)
    return ss.StreamingLoader(ds, batch_size, last="short", engine=engine)


def plain(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: values.tolist() if torch.is_tensor(values) else values for name, values in batch.items()}


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def shared() -> set[str]:
    """What Python or torch put into shared memory by name; other programs have theirs there, too."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "torch_", "shard"))}


def children() -> list[int]:
    """The processes of loaders that this process has started."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                if b"shardstream.read.handoff.child_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
    return found


def test_epochs_state_and_statistics_are_those_of_the_threads(packed: Path) -> None:
    threads, process = loader(packed, "thread"), loader(packed)
    for _ in range(2):
        assert [plain(batch) for batch in process] == [plain(batch) for batch in threads]
    assert process.state_dict() == threads.state_dict()
    for number, _ in enumerate(process):
        if number == 3:
            break
    state = process.state_dict()
    rest = [batch["__key__"] for batch in process]  # a new iteration: the next epoch
    other = loader(packed, "thread")
    other.load_state_dict(state)
    resumed = [batch["__key__"] for batch in other]
    process.load_state_dict(state)
    assert [batch["__key__"] for batch in process] == resumed != rest
    stats = process.stats()
    assert stats["batches"] == 13 * 4 + 4 - 4
    assert stats["frames"] > 10


def refuse(sample: dict[str, Any]) -> Any:
    if sample["__key__"] == "doc-050":
        raise LookupError(f"cannot use {sample['__key__']}")
    return sample


def test_an_error_is_raised_here_and_the_next_iteration_works(packed: Path) -> None:
    one = loader(packed, transform=refuse)
    for _ in range(2):
        with pytest.raises(LookupError, match="cannot use doc-050"):
            list(one)


def test_what_cannot_be_sent_is_a_typed_error(packed: Path) -> None:
    with pytest.raises(OptionError, match="top of a module"):
        next(iter(loader(packed, transform=lambda sample: sample)))


def test_a_second_iteration_ends_the_first(packed: Path) -> None:
    one = loader(packed)
    first = iter(one)
    next(first)
    second = iter(one)
    assert len(list(second)) == 13
    with pytest.raises(OptionError, match="one iteration at a time"):
        list(first)


def test_the_process_ends_with_its_loader(packed: Path) -> None:
    before = set(children())
    one = loader(packed)
    next(iter(one))
    (pid,) = set(children()) - before
    del one
    gc.collect()
    assert gone(pid)
    assert pid not in children()


def test_a_killed_process_is_a_typed_error_and_is_started_again(packed: Path) -> None:
    before = set(children())
    one = loader(packed, batch_size=1)  # more batches than are made ahead
    batches = iter(one)
    next(batches)
    (pid,) = set(children()) - before
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(StorageError, match="exit code -9"):
        list(batches)
    one.set_epoch(0)
    assert len(list(one)) == 100


_SCRIPT = """
import glob, sys, time
import shardstream as ss

if __name__ == "__main__":
    ds = ss.StreamingDataset(sys.argv[1], topology=ss.Topology())
    loader = ss.StreamingLoader(ds, 4, engine="process")
    batches = iter(loader)
    next(batches)
    (child,) = "".join(open(name).read() for name in glob.glob("/proc/self/task/*/children")).split()
    print(child, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long), None], ids=str
)
def test_nothing_outlives_the_consumer(packed: Path, tmp_path: Path, how: signal.Signals | None) -> None:
    before = shared()
    script = tmp_path / "train.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, str(script), str(packed), "60" if how else "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        if how is not None:
            process.send_signal(how)
        process.wait(90)
    assert gone(pid)
    assert shared() <= before
