"""The file of a process: others read it while it works, and it goes when the process goes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from shardstream.counters import folders, page, recorder
from shardstream.counters.cells import Cells
from shardstream.counters.layout import COUNTERS, HEADER, SIZE, SLOTS_AT, STAGES, slot, stage
from shardstream.counters.snapshots import Snapshot, read_all, read_file

WORK = """
import os, sys, time
from shardstream.counters import page, recorder
from shardstream.counters.layout import slot, stage
recorder.add(slot("samples"), 3)  # before there is a file
page.begin("loader", "s3://bucket/corpus", 3, 8)
recorder.add(slot("samples"), 4)
recorder.span(stage("wait"), 10.0, 10.5)
"""


def inside(folder: Path) -> Path:
    """The folder of this user."""
    return folder / f"shardstream-{os.getuid()}"


def until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def start(folder: str | Path, text: str, **environment: str) -> subprocess.Popen[str]:
    """A program that works, says "ready" and waits for a line."""
    code = WORK + text + "\nprint('ready', flush=True); sys.stdin.readline()\n"
    known = os.environ | {"SHARDSTREAM_COUNTERS": str(folder)} | environment
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=known
    )
    until_ready(process)
    return process


def leave(process: subprocess.Popen[str]) -> int:
    process.communicate("\n", timeout=60)
    return process.returncode


def numbers(found: Snapshot) -> tuple[float, int, float]:
    waits = found.stages["wait"]
    return found.values["samples"], waits.count, waits.sum


def test_others_see_it_and_it_goes_at_the_end(tmp_path: Path) -> None:
    process = start(tmp_path, "", SHARDSTREAM_JOB="llama")
    (found,) = read_all(str(inside(tmp_path)))
    assert numbers(found) == (7, 1, 0.5)
    head = found.header
    assert (head.pid, head.rank, head.world, head.job) == (process.pid, 3, 8, "llama")
    assert (head.activities, head.what, found.alive) == ({"loader"}, "s3://bucket/corpus", True)
    assert Path(found.path).stat().st_size == SIZE
    assert Path(found.path).stat().st_mode & 0o777 == 0o600
    assert leave(process) == 0
    assert list(inside(tmp_path).iterdir()) == []


def test_the_file_of_a_killed_process_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    process = start(tmp_path, "")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = inside(tmp_path).iterdir()
    found = read_file(str(left))
    assert found is not None
    assert found.alive is False
    other = start(tmp_path, "")
    assert not left.exists()
    assert [each.header.pid for each in read_all(str(inside(tmp_path)))] == [other.pid]
    leave(other)


def test_a_process_id_that_came_again_is_another_process(tmp_path: Path) -> None:
    process = start(tmp_path, "")
    (path,) = inside(tmp_path).iterdir()
    data = path.read_bytes()
    header = page.read_header(data)
    assert header is not None
    header.start -= 1
    head = header.pack()
    old = path.rename(path.parent / f"{header.pid}-{header.start}-0.counters")
    old.write_bytes(head + data[len(head) :])
    assert read_all(str(inside(tmp_path))) == []
    assert not old.exists()
    leave(process)


@pytest.mark.parametrize(
    ("name", "value", "memory", "alive"),
    [
        ("namespace", 1, True, [None]),
        ("host", "elsewhere", True, [None]),
        ("boot", "old", False, [None]),
        ("boot", "old", True, []),
    ],
)
def test_another_container_is_shown_and_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, memory: bool, alive: list[None]
) -> None:
    monkeypatch.setattr(page, "in_memory", lambda _: memory)
    process = start(tmp_path, "")
    (path,) = inside(tmp_path).iterdir()
    data = path.read_bytes()
    leave(process)
    header = page.read_header(data)
    assert header is not None
    header.pid = 2**22 + 1  # no process of this machine
    setattr(header, name, value)
    head = header.pack()
    (path.parent / f"{header.pid}-{header.start}-0.counters").write_bytes(head + data[len(head) :])
    assert [each.alive for each in read_all(str(inside(tmp_path)))] == alive
    assert len(list(path.parent.iterdir())) == len(alive)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is none")
def test_what_is_in_memory_is_known() -> None:
    assert folders.in_memory("/dev/shm")
    assert not folders.in_memory("/proc/self")


def test_what_is_no_file_of_this_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "odd.counters").write_bytes(b"x" * SIZE)
    (tmp_path / f"{2**22 + 1}-1-0.counters").write_bytes(b"of another version" + bytes(SIZE))
    os.mkfifo(tmp_path / f"{2**22 + 2}-1-0.counters")  # to open it would wait for a writer
    (tmp_path / f"{2**22 + 3}-1-0.counters").symlink_to("/etc/passwd")
    assert read_all(str(tmp_path)) == []
    assert len(list(tmp_path.iterdir())) == 5


def test_a_folder_is_for_its_user_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inside(tmp_path).mkdir(mode=0o777)
    inside(tmp_path).chmod(0o777)
    process = start(tmp_path, "")
    assert inside(tmp_path).stat().st_mode & 0o777 == 0o700
    # One that leads elsewhere may be somebody else's.
    other = tmp_path / "other"
    other.mkdir()
    inside(other).symlink_to(inside(tmp_path))
    assert read_all(str(inside(other))) == []
    assert leave(start(other, "")) == 0
    assert "it belongs to somebody else" in capfd.readouterr().err
    assert len(read_all(str(inside(tmp_path)))) == 1
    leave(process)


FORK = """
import signal
pid = os.fork()
if not pid:
    recorder.add(slot("samples"), 100)
    page.begin("pack")
    print("ready", flush=True)
    signal.pause()
"""


def test_a_fork_has_a_file_of_its_own(tmp_path: Path) -> None:
    process = start(tmp_path, FORK)
    until_ready(process)  # the other of the two
    found = {each.header.pid == process.pid: each for each in read_all(str(inside(tmp_path)))}
    assert numbers(found[True]) == (7, 1, 0.5)
    assert numbers(found[False]) == (100, 0, 0.0)
    assert found[False].header.activities == {"pack"}
    os.kill(found[False].header.pid, signal.SIGKILL)
    assert leave(process) == 0


def work(pipe: Connection) -> None:
    page.begin("pack")
    pipe.send(os.getpid())
    pipe.recv()


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_the_file_of_a_child_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("SHARDSTREAM_COUNTERS", str(tmp_path))
    context: Any = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=work, args=(there,))
    child.start()
    pid = here.recv()
    assert [each.header.pid for each in read_all(str(inside(tmp_path)))] == [pid]
    here.send(None)
    child.join(60)
    assert list(inside(tmp_path).iterdir()) == []


def closed(folder: Path) -> str:
    folder.write_text("a file, no folder")
    return str(folder)


def full(_: Path) -> str:
    return "/dev/full"  # neither a folder


@pytest.mark.parametrize("place", [closed, full, lambda _: "off"])
def test_without_a_place_the_numbers_stay_private(
    tmp_path: Path, place: Callable[[Path], str], capfd: pytest.CaptureFixture[str]
) -> None:
    text = (
        "page.begin('warm')\n"
        "from shardstream.counters.snapshots import read_own\nassert read_own().values['samples'] == 7\n"
    )
    where = place(tmp_path / "here")
    assert leave(start(where, text)) == 0
    said = capfd.readouterr().err
    assert said.count("are not shown to others") == (where != "off")


def test_a_full_disk_is_found_out_before_the_memory_is_used(tmp_path: Path) -> None:
    # The limit on the size of files stands in for a full /dev/shm: the write of the file is what fails.
    text = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code = text + "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + WORK
    done = subprocess.run(
        [sys.executable, "-c", code + "assert page.PROCESS.slots[slot('samples')] == 7"],
        env=os.environ | {"SHARDSTREAM_COUNTERS": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0
    assert list(inside(tmp_path).iterdir()) == []


def test_the_layout_is_what_version_1_says() -> None:
    assert (HEADER.size, SLOTS_AT) == (440, 512)
    assert [each.name for each in STAGES][:4] == ["wait", "step", "batch", "fetch"]
    assert (stage("request_bytes"), slot("batches"), COUNTERS[0].name) == (13, 28, "batches")


def test_all_threads_count_exactly() -> None:
    import threading

    mine = recorder.Recorder(), Cells()
    number, place = stage("batch"), slot("batches")

    def count() -> None:
        for _ in range(20_000):
            mine[0].add(place)
            mine[0].span(number, 1.0, 1.001)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mine[0].slots[place] == mine[0].slots[2 * number] == 80_000
