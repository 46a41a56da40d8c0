"""Processes that are killed, forked, interrupted, or just end: no row is lost, and none comes twice."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.logs import Log, read
from tests.logs.conftest import files
from tests.proxy import Proxy
from tests.servers import Weed
from tests.watch import ended

Maker = Callable[..., Log]

_BEGIN = """
import json, os, signal, sys, threading, time
import shardstream as ss
url, spool, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
log = ss.Log(url, **{"spool": spool, "seconds": 1000, "rank": 0, **options})
def said(number):
    log.write(step=number)
    os.write(1, b"%d\\n" % number)
"""


class Program:
    """A program with a log. What it prints are the steps that it has written."""

    def __init__(self, tmp_path: Path, code: str, *before: str, options: str = "{}") -> None:
        (tmp_path / "temporary").mkdir(exist_ok=True)
        command = [
            *before,
            sys.executable,
            "-c",
            _BEGIN + code,
            str(tmp_path / "log"),
            str(tmp_path / "spool"),
        ]
        self.process = subprocess.Popen(
            [*command, options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
        )  # fmt: skip

    def line(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def ended(self) -> tuple[int, list[int], str]:
        """Its exit code, the steps that it has still printed, and its errors."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, [int(line) for line in out.split()], err.decode()


def counted(tmp_path: Path) -> Counter[int]:
    if not (tmp_path / "log").exists():
        return Counter()
    return Counter(row["step"] for row in read(str(tmp_path / "log")) if "step" in row)


def recovered(made: Maker, tmp_path: Path) -> Counter[int]:
    """The steps in the log after the next process has begun, and ended."""
    assert made().close(timeout=60)
    # An empty file that has no name yet is left alone for a minute: it may be a living process's.
    assert [path for path in files(tmp_path / "spool") if not path.name.startswith(".new-")] == []
    return counted(tmp_path)


def test_sigkill_loses_no_row(made: Maker, tmp_path: Path) -> None:
    program = Program(tmp_path, "number = 0\nwhile True:\n    said(number)\n    number += 1")
    while (last := program.line()) < 500:
        pass
    program.process.kill()
    last = max([last, *program.ended()[1]])
    found = recovered(made, tmp_path)
    # A row may have been written, and not been printed.
    assert set(found) - {last + 1} == set(range(last + 1))
    assert set(found.values()) == {1}


POINTS = [
    ("rename", 1), ("rename", 2), ("rename", 3), ("rename", 4), ("link", 1), ("link", 2), ("link", 4),
    ("unlink", 2), ("unlink", 3), ("unlink", 4), ("fsync", 1), ("fsync", 4),
]  # fmt: skip


@pytest.mark.parametrize(("call", "when"), POINTS)
def test_sigkill_at_every_step_of_an_upload(made: Maker, tmp_path: Path, call: str, when: int) -> None:
    strace = ["strace", "-f", "-o", os.devnull, "-e", f"trace={call}"]
    strace += ["-e", f"inject={call}:signal=SIGKILL:when={when}"]
    code = "for number in range(100):\n    said(number)\nlog.close()"
    program = Program(tmp_path, code, *strace, options='{"segment": "1KiB", "spool_limit": "1MiB"}')
    status, steps, errors = program.ended()
    assert status == -signal.SIGKILL, errors
    found = recovered(made, tmp_path)
    assert set(found) - {len(steps)} == set(range(len(steps)))
    assert not found or set(found.values()) == {1}


def test_a_row_that_was_cut_by_a_kill_is_no_row_and_is_told(made: Maker, tmp_path: Path, spool: Path) -> None:
    program = Program(tmp_path, "said(0)\nsaid(1)\nos.kill(os.getpid(), signal.SIGKILL)")
    program.ended()
    [segment] = files(spool)
    with segment.open("ab") as file:
        file.write(b'{"time":1.0,"rank":0,"st')
    log = made()
    assert log.close()
    assert log.dropped == 1
    rows = list(read(str(tmp_path / "log")))
    assert [row.get("step") for row in rows] == [0, 1, None]
    assert (rows[2]["shardstream"], rows[2]["bytes"]) == ("cut", 24)


def test_processes_that_start_at_once_share_what_was_left(tmp_path: Path) -> None:
    for first in (0, 100, 200):
        rank = f'{{"rank": {first // 100}, "segment": "1KiB", "spool_limit": "1MiB"}}'
        code = f"for n in range({first}, {first + 50}): said(n)\nos.kill(os.getpid(), signal.SIGKILL)"
        assert Program(tmp_path, code, options=rank).ended()[0] == -signal.SIGKILL
    programs = [
        Program(tmp_path, f"said({1000 + rank})\nlog.close(60)", options=f'{{"rank": {rank}}}')
        for rank in range(2, 6)
    ]
    assert [program.ended()[::2] for program in programs] == [(0, "")] * 4
    found = counted(tmp_path)
    assert set(found.values()) == {1}
    assert set(found) == {*range(50), *range(100, 150), *range(200, 250), *range(1002, 1006)}
    # Each row is below its own rank, whoever has uploaded it.
    ranks = {row["step"]: row["rank"] for row in read(str(tmp_path / "log"))}
    assert all(ranks[step] == step // 100 for step in found if step < 1000)
    assert {row["step"] for row in read(str(tmp_path / "log"), rank=1)} == set(range(100, 150))
    assert files(tmp_path / "spool") == []


def test_a_living_process_keeps_its_segments(made: Maker, tmp_path: Path) -> None:
    program = Program(tmp_path, "said(0)\nsys.stdin.read()")
    program.line()
    assert made().close()
    assert files(tmp_path / "log") == []
    status, _, errors = program.ended()
    assert (status, errors) == (0, "")
    assert counted(tmp_path) == {0: 1}


@pytest.mark.parametrize(
    "how", ["return", "sys.exit(3)", "raise KeyError", "signal.raise_signal(signal.SIGINT)"]
)
def test_the_end_of_a_program_uploads_its_rows(tmp_path: Path, how: str) -> None:
    program = Program(tmp_path, f"said(0)\ndef end():\n    {how}\nend()")
    status, _, errors = program.ended()
    assert status == {"return": 0, "sys.exit(3)": 3, "raise KeyError": 1}.get(how, -signal.SIGINT)
    assert "shardstream" not in errors
    assert counted(tmp_path) == {0: 1}
    assert files(tmp_path / "spool") == []


def test_an_interrupt_at_the_end_says_how_many_rows_stay(made: Maker, tmp_path: Path) -> None:
    code = """
class Sink:
    def write(self, rows): pass
    def close(self):
        time.sleep(0.5)  # so that the signal comes while it waits, not just before
        os.kill(os.getpid(), signal.SIGINT)  # the program waits for the store and the sinks
log.close()
open(url, "w").close()  # in the way of the next log
log = ss.Log(url, spool=spool, rank=0, seconds=1000, timeout=100, sinks=[Sink()])
said(0)
said(1)
"""
    _, _, errors = Program(tmp_path, code).ended()
    assert "2 rows are not uploaded" in errors
    assert "Traceback" not in errors
    (tmp_path / "log").unlink()
    assert recovered(made, tmp_path) == {0: 1, 1: 1}


def test_the_end_of_a_program_does_not_wait_for_a_dead_store(
    made: Maker, tmp_path: Path, weed: Weed, proxy_to: Callable[..., Proxy]
) -> None:
    import json

    proxy = proxy_to(weed, dead=True, only=lambda *_: True)
    url = weed.bucket()
    options = {"timeout": 0.3, "storage_options": weed.options(proxy.url)}
    code = f"log.close()\nlog = ss.Log({url!r}, spool=spool, rank=0, **options)\nsaid(0)"
    status, _, errors = Program(tmp_path, code, options=json.dumps(options)).ended()
    assert status == 0
    assert "1 rows are not uploaded" in errors
    assert "Traceback" not in errors
    assert made(url, storage_options=weed.options()).close(timeout=60)
    assert [row["step"] for row in read(url, storage_options=weed.options())] == [0]


def test_rows_after_the_end_of_the_program_are_for_the_next_one(made: Maker, tmp_path: Path) -> None:
    program = Program(tmp_path, "said(0)\nimport atexit\natexit.register(said, 2)\nsaid(1)")
    assert program.ended()[0] == 0
    # This one was registered later, and so runs earlier.
    assert counted(tmp_path) == {0: 1, 1: 1, 2: 1}


_FORKS = """
def child(number, end):
    pid = os.fork()
    if not pid:
        said(number)
        end(0)
    return pid

said(0)
busy = threading.Event()
def work():
    number = 1000
    while not busy.is_set():
        log.write(step=number)
        number += 1
thread = threading.Thread(target=work)
thread.start()
children = [child(number, os._exit if number % 2 else sys.exit) for number in range(1, 9)]
for each in children:
    assert os.waitpid(each, 0)[1] == 0
busy.set()
thread.join()
said(9)
assert log.close()
"""


def test_forks_have_segments_of_their_own(tmp_path: Path) -> None:
    program = Program(tmp_path, _FORKS, options='{"segment": "64KiB", "spool_limit": "64MiB"}')
    status, _, errors = program.ended()
    assert (status, errors) == (0, "")
    found = counted(tmp_path)
    assert set(found.values()) == {1}
    # The parent has uploaded what children left that ended without their exit functions.
    assert set(range(10)) <= set(found)
    assert len(found) == 10 + max(found) - 999
    assert files(tmp_path / "spool") == []


def test_a_child_does_not_keep_the_segments_of_a_parent_that_was_killed(made: Maker, tmp_path: Path) -> None:
    code = """
said(0)
if not os.fork():
    said(1)
    sys.stdin.read()
    os._exit(0)
said(2)
signal.pause()
"""
    program = Program(tmp_path, code)
    assert {program.line(), program.line(), program.line()} == {0, 1, 2}
    program.process.kill()
    program.process.wait()
    # The child lives. It may take the rows of its parent before another process does.
    assert ended(lambda: made().close() and counted(tmp_path) == {0: 1, 2: 1})
    assert program.process.stdin is not None
    program.process.stdin.close()
    assert ended(lambda: made().close() and counted(tmp_path) == {0: 1, 1: 1, 2: 1})
    for pipe in (program.process.stdout, program.process.stderr):
        assert pipe is not None
        pipe.close()


def test_spawned_processes_write_to_the_same_log(tmp_path: Path) -> None:
    module = tmp_path / "spawned.py"
    module.write_text("def work(log, number):\n    log.write(step=number)\n    log.close()\n")
    code = f"""
sys.path.insert(0, {str(tmp_path)!r})
import multiprocessing, spawned
workers = [multiprocessing.get_context("spawn").Process(target=spawned.work, args=(log, n)) for n in range(2)]
for worker in workers: worker.start()
for worker in workers: worker.join()
said(2)
"""
    status, _, errors = Program(tmp_path, code).ended()
    assert (status, errors) == (0, "")
    assert counted(tmp_path) == {0: 1, 1: 1, 2: 1}


def test_signal_handlers_may_write_rows(made: Maker, tmp_path: Path) -> None:
    log = made(segment="4KiB", spool_limit="64MiB")
    late = iter(range(10**6, 2 * 10**6))
    before = signal.signal(signal.SIGALRM, lambda *_: log.write(step=next(late)))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for number in range(5000):
            log.write(step=number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert log.close()
    found = counted(tmp_path)
    assert set(found.values()) == {1}
    assert set(range(5000)) <= set(found)
    assert len(found) == 5000 + next(late) - 10**6


def test_interrupts_leave_whole_rows(made: Maker, tmp_path: Path) -> None:
    class Interrupt(BaseException):
        pass

    armed = False

    def interrupt(*_: Any) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    log = made(segment="1KiB", spool_limit="64MiB")
    before = signal.signal(signal.SIGALRM, interrupt)
    number = interrupts = 0
    gc.disable()  # hypothesis is called by the collector, and an interrupt there goes nowhere
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    try:
        while interrupts < 200:
            try:
                armed = True
                while armed:  # an interrupt within a destructor goes nowhere
                    log.write(step=number)
                    number += 1
            except Interrupt:
                number += 1
            interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    log.write(step=number)
    assert log.close(timeout=60)
    found = counted(tmp_path)
    assert set(found.values()) == {1}
    assert number + 1 - len(found) in range(interrupts + 1)  # at most the row that was interrupted


@pytest.mark.long
def test_memory_is_flat_over_a_million_rows(made: Maker, tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    (tmp_path / "log").write_text("in the way: nothing is uploaded")
    log = made(segment="1MiB", spool_limit="8MiB")
    early = 0
    for number in range(1_000_000):
        log.write(step=number, loss=0.5)
        if number == 200_000:
            early = resident()
    assert resident() - early < 16 << 20
    log.close(timeout=0.1)
    assert isinstance(log.dropped, int)
    assert log.dropped > 0
    assert ss.Log is Log
