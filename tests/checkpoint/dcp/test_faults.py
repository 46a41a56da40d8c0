"""The three ways in which torch's own writers lose data: they occur there, and they do not occur here."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem

import shardstream as ss
from shardstream.checkpoint.dcp import background
from shardstream.checkpoint.dcp.commit import Attempt
from tests.distributed.launch import call
from tests.watch import ended

# torch warns of one process, and of a checkpoint that it overwrites.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected an existing checkpoint:UserWarning"),
]


def state(value: float, tensors: int = 8, size: int = 100_000) -> dict[str, torch.Tensor]:
    return {f"w{number}": torch.full((size,), float(value + number)) for number in range(tensors)}


def loaded(reader: Any, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# 1. A full disk, met by a helper thread.


class Full(FileSystem):
    """A disk that is full for all threads but the main one."""

    def create_stream(self, path: Any, mode: str) -> Any:
        if mode == "wb" and threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().create_stream(path, mode)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_torch_loses_the_error_of_a_thread(tmp_path: Path) -> None:
    writer = FileSystemWriter(tmp_path, thread_count=2)
    writer.fs = Full()
    metadata = dcp.save(state(1), storage_writer=writer, no_dist=True)  # returns
    assert len(metadata.storage_data) == 4  # of 8
    with pytest.raises(CheckpointException, match="KeyError"):
        loaded(dcp.FileSystemReader(tmp_path), state(1))


def test_a_full_disk_is_raised_and_leaves_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2048) as disk:
        dcp.save(state(1, 2), storage_writer=ss.dcp.Writer(disk / "step-1"), no_dist=True)
        with pytest.raises(CheckpointException) as caught:
            dcp.save(state(2), storage_writer=ss.dcp.Writer(disk / "step-2"), no_dist=True)
        error = caught.value.failures[0][0]
        assert isinstance(error, ss.StorageError)
        assert "No space left" in str(error)
        assert not list(disk.glob("step-2/*/*.safetensors"))
        dcp.save(state(2, 2), storage_writer=ss.dcp.Writer(disk / "step-2"), no_dist=True)
        assert same(loaded(ss.dcp.Reader(disk / "step-1"), state(1, 2)), state(1, 2))
        assert same(loaded(ss.dcp.Reader(disk / "step-2"), state(2, 2)), state(2, 2))


def test_a_full_disk_is_raised_by_async_save(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        future = dcp.async_save(state(1), storage_writer=ss.dcp.Writer(disk / "step-1"), no_dist=True)
        with pytest.raises(CheckpointException, match="No space left"):
            future.result()


def test_a_full_local_disk_is_passed_by(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        writer = ss.dcp.Writer(tmp_path / "far" / "step-1", local=disk)
        dcp.save(state(1), storage_writer=writer, no_dist=True)
        writer.wait()
        assert same(loaded(ss.dcp.Reader(tmp_path / "far" / "step-1", local=disk), state(1)), state(1))


def test_what_fails_behind_a_save_arrives(tmp_path: Path) -> None:
    with small_disk(tmp_path / "far", 1024) as far:
        writer = ss.dcp.Writer(far / "step-1", local=tmp_path / "near")
        # By the save, if it goes on still, else by the call after it.
        with pytest.raises((CheckpointException, ss.StorageError), match="No space left"):
            save_and_wait(writer)


def save_and_wait(writer: Any) -> None:
    dcp.save(state(1), storage_writer=writer, no_dist=True)
    writer.wait()


def test_the_next_save_of_any_writer_tells_what_failed(tmp_path: Path) -> None:
    def fail() -> None:
        raise ss.StorageError("the bucket is gone")

    behind = background.Committing(fail, "commit-test")
    background.add(behind, "s3://b/run/step-1")
    assert behind.wait(30)
    with pytest.raises(ss.StorageError, match=r"s3://b/run/step-1: .* not committed.*the bucket is gone"):
        ss.dcp.Writer(tmp_path / "step-2").stage({"w": torch.ones(3)})
    ss.dcp.Writer(tmp_path / "step-2").stage({"w": torch.ones(3)})  # told once


# 2. A kill in the middle of a save to the folder of an older one.


def save_killed(folder: str) -> None:
    import torch.distributed.checkpoint.filesystem as filesystem

    real, count = filesystem._write_item, 0

    def killed(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    filesystem._write_item = killed
    dcp.save(state(2), checkpoint_id=folder, no_dist=True)


@pytest.mark.long  # it is torch's own writer that is tried
def test_torch_loses_the_old_checkpoint(tmp_path: Path) -> None:
    dcp.save(state(1), checkpoint_id=tmp_path / "c", no_dist=True)
    with call(save_killed, 1, tmp_path / "rank", str(tmp_path / "c")) as ranks:
        assert ranks.wait() == [-signal.SIGKILL]
    found = state(0)
    with pytest.raises(CheckpointException):
        dcp.load(found, checkpoint_id=tmp_path / "c", no_dist=True)
    assert not same(found, state(0))  # half of it is of the new step


def save_when_told(folder: str, url: str, local: str | None, ready: str) -> None:
    """Saves once the file `ready` is gone."""
    writer = ss.dcp.Writer(url, local=local)
    Path(ready).touch()
    assert ended(lambda: not Path(ready).exists())
    dcp.save(state(2), storage_writer=writer, no_dist=True)
    writer.wait()


CALLS = ["pwritev2", "write", "fsync", "link", "unlink", "rename", "fallocate", "mkdir"]


def fault(tmp_path: Path, inject: str, local: str | None = None) -> tuple[int, Path]:
    """A save of step 2 with a fault in a system call; the exit code and the folder of both steps."""
    folder = tmp_path / "run"
    ready = tmp_path / "ready"
    with call(
        save_when_told, 1, tmp_path / "rank", str(folder), str(folder / "step-2"), local, str(ready)
    ) as ranks:
        assert ended(ready.exists)
        strace = subprocess.Popen(
            ["strace", "-f", "-p", str(ranks.handles[0].pid), "-o", os.devnull, "-e", f"inject={inject}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert strace.stderr is not None
        line = strace.stderr.readline()
        if "attached" not in line:
            pytest.skip(f"strace cannot attach: {line}")
        ready.unlink()
        code = ranks.wait()[0]
        strace.communicate(timeout=30)
    return code, folder


def check_whole(folder: Path, code: int) -> None:
    """The old checkpoint is whole, and the new one is whole or is not there."""
    assert same(loaded(ss.dcp.Reader(folder / "step-1"), state(1)), state(1))
    if code == 0 or (folder / "step-2" / "manifest.json").exists():
        assert same(loaded(ss.dcp.Reader(folder / "step-2"), state(2)), state(2))
        return
    with pytest.raises(ss.StorageError, match="no checkpoint"):
        ss.dcp.Reader(folder / "step-2").read_metadata()
    dcp.save(state(2), storage_writer=ss.dcp.Writer(folder / "step-2"), no_dist=True)
    assert same(loaded(ss.dcp.Reader(folder / "step-2"), state(2)), state(2))


def faults(tmp_path: Path, kind: str, calls: list[str], most: int) -> int:
    """Faults at the first, second, ... call of each kind; how many took place."""
    took = 0
    for name in calls:
        for when in range(1, most + 1):
            place = tmp_path / f"{name}-{when}"
            place.mkdir()
            dcp.save(state(1), storage_writer=ss.dcp.Writer(place / "run" / "step-1"), no_dist=True)
            code, folder = fault(place, f"{name}:{kind}:when={when}")
            check_whole(folder, code)
            if code == 0:
                break
            took += 1
    return took


def test_a_kill_in_mid_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    assert faults(tmp_path, "signal=SIGKILL", ["pwritev2", "fsync", "link"], 1) == 3


def save_killed_behind(url: str, local: str) -> None:
    """Killed once all lies on the local disk, before anything is committed at the URL."""
    Attempt.put_behind = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, method-assign]
    save_and_wait(ss.dcp.Writer(url, local=local))


def test_a_kill_behind_a_save_does_not_block_its_step(tmp_path: Path) -> None:
    """What lies on the local disk is read until the step is saved again, and then it is deleted."""
    url, near = str(tmp_path / "far" / "step-1"), str(tmp_path / "near")
    with call(save_killed_behind, 1, tmp_path / "rank", url, near) as ranks:
        assert ranks.wait() == [-signal.SIGKILL]
    assert same(loaded(ss.dcp.Reader(url, near), state(1)), state(1))
    writer = ss.dcp.Writer(url, near)
    dcp.save(state(2), storage_writer=writer, no_dist=True)
    writer.wait()
    for reader in (ss.dcp.Reader(url), ss.dcp.Reader(url, near)):
        assert same(loaded(reader, state(1)), state(2))
    (folder,) = Path(near).iterdir()
    assert len([name for name in os.listdir(folder) if name != "manifest.json"]) == 1
    with pytest.raises(CheckpointException, match="never overwritten"):
        dcp.save(state(3), storage_writer=ss.dcp.Writer(url, near), no_dist=True)


def test_a_step_that_is_on_its_way_is_not_saved_again(tmp_path: Path) -> None:
    go = threading.Event()
    url = str(tmp_path / "step-1")
    behind = background.Committing(lambda: go.wait(60) and None, "commit-test")
    background.add(behind, url)
    with pytest.raises(CheckpointException, match="goes on in the background"):
        dcp.save(state(1), storage_writer=ss.dcp.Writer(url, tmp_path / "near"), no_dist=True)
    go.set()
    background.wait_for([behind])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["signal=SIGKILL", "error=ENOSPC"])
def test_faults_at_every_call(tmp_path: Path, kind: str) -> None:
    assert faults(tmp_path, kind, CALLS, 12) >= 8


# 3. Flipped bits.


@pytest.mark.long
def test_torch_loads_flipped_bits(tmp_path: Path) -> None:
    good = state(1, 4, 20_000)
    dcp.save(good, checkpoint_id=tmp_path, no_dist=True)
    silent, errors = flips(tmp_path / "__0_0.distcp", 200, lambda: dcp.FileSystemReader(tmp_path), good)
    print(
        f"{silent} load with wrong values, {len(errors)} raise, {200 - silent - len(errors)} change nothing"
    )
    assert silent > 180


FLIPS = [60, pytest.param(400, marks=pytest.mark.long)]


@pytest.mark.parametrize("count", FLIPS)
def test_flipped_bits_are_named(tmp_path: Path, count: int) -> None:
    good = state(1, 4, 20_000)
    dcp.save(good, storage_writer=ss.dcp.Writer(tmp_path / "one"), no_dist=True)
    (file,) = tmp_path.glob("one/*/*.safetensors")
    silent, errors = flips(file, count, lambda: ss.dcp.Reader(tmp_path / "one"), good)
    assert (silent, len(errors)) == (0, count)
    assert all(isinstance(error, ss.CorruptionError) for error in errors)
    # The tensor that has the bit, and others that share its 64 KiB.
    assert all(file.name in str(error) and ("w" in str(error).rpartition(":")[2]) for error in errors)


@pytest.mark.parametrize("count", FLIPS)
def test_flipped_bits_of_the_manifest_are_named(tmp_path: Path, count: int) -> None:
    good = state(1, 4, 200)
    dcp.save(good, storage_writer=ss.dcp.Writer(tmp_path / "one"), no_dist=True)
    file = tmp_path / "one" / "manifest.json"
    silent, errors = flips(file, count, lambda: ss.dcp.Reader(tmp_path / "one"), good)
    assert (silent, len(errors)) == (0, count)
    assert all("manifest.json" in str(error) for error in errors)


def flips(
    file: Path, count: int, reader: Any, good: dict[str, torch.Tensor]
) -> tuple[int, list[BaseException]]:
    """How many flipped bits of a file are loaded without a word, and the errors of the others."""
    numbers = random.Random(0)
    data = file.read_bytes()
    silent, errors = 0, []
    for _ in range(count):
        bad = bytearray(data)
        bad[numbers.randrange(len(bad))] ^= 1 << numbers.randrange(8)
        file.write_bytes(bad)
        try:
            silent += not same(loaded(reader(), good), good)
        except CheckpointException as error:
            errors.append(error.failures[0][0])
    file.write_bytes(data)
    return silent, errors


# The end of a program with a save in flight, and a fork.

PROGRAM = """
import sys, threading, time, warnings
import torch, torch.distributed.checkpoint as dcp
import shardstream as ss
warnings.filterwarnings("ignore")
folder, how = sys.argv[1:]
state = {f"w{n}": torch.full((200_000,), float(n)) for n in range(8)}
if how == "sync":
    writer = ss.dcp.Writer(folder + "/far/step-1", local=folder + "/near")
    dcp.save(state, storage_writer=writer, no_dist=True)
else:
    dcp.async_save(state, storage_writer=ss.dcp.Writer(folder + "/far/step-1"), no_dist=True)
"""


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_program_that_ends_commits_first(tmp_path: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), how],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {f"w{n}": torch.full((200_000,), float(n)) for n in range(8)}
    assert same(loaded(ss.dcp.Reader(tmp_path / "far" / "step-1"), expected), expected)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_in_mid_save(tmp_path: Path) -> None:
    """The child ends at once, or saves by itself; the parent's save goes on."""
    writer = ss.dcp.Writer(tmp_path / "step-1", local=None)
    big = state(1, 4, 500_000)
    future = dcp.async_save(big, storage_writer=writer, no_dist=True)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            staged = writer.stage({"w": torch.ones(3)})
            code = 0 if torch.equal(staged["w"], torch.ones(3)) and writer._process == os.getpid() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    future.result()
    assert same(loaded(ss.dcp.Reader(tmp_path / "step-1"), big), big)
