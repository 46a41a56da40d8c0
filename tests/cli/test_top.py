"""`shardstream top`: in a terminal, without one, for machines, and as an endpoint."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.observe.children import counting

COMMAND = [sys.executable, "-W", "error", "-m", "shardstream", "top"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHARDSTREAM_COUNTERS", str(tmp_path))


def test_without_a_terminal_it_prints_once(run: Run, tmp_path: Path) -> None:
    assert run("top", "--every", "0.1") == (
        0,
        "No process of this user works with shardstream on this machine.\n",
        "",
    )
    with counting(2, tmp_path, samples=50, retries=7) as ranks:
        ranks[1].send_signal(signal.SIGSTOP)
        os.waitpid(ranks[1].pid, os.WUNTRACED)
        code, table, _ = run("top", "--every", "0.1", "--sort", "retries")
        assert code == 0
        assert [line.split()[0] for line in table.splitlines() if line] == ["job", "train.py", "rank", "rank"]
        assert "stopped, no progress" in table
        code, text, _ = run("top", "--json", "--every", "0.1")
        assert code == 0
        found = json.loads(text)
        ranks[1].send_signal(signal.SIGCONT)
    assert [process["rank"] for process in found["processes"]] == [0, 1]
    first, second = found["processes"]
    assert (first["counters"]["samples"], first["activities"], first["state"]) == (50, ["loader"], "")
    assert second["state"].startswith("stopped")
    assert set(found) == {"time", "seconds", "processes", "works"}


def test_wrong_usage(run: Run) -> None:
    code, _, said = run("top", "--sort", "name")
    assert code == 2
    assert "must be one of rank, wait" in said
    assert run("top", "--serve", "0", "--host", "203.0.113.9")[0] == 2


def in_terminal(keys: bytes, *options: str) -> tuple[int, bytes]:
    """What the command does if keys are typed in a terminal: its exit code, and all that it printed."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "20"}
    process = subprocess.Popen(
        [*COMMAND, *options],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    printed = b""
    try:
        while b"q quit" not in printed:
            printed += os.read(master, 65536)
        os.write(master, keys)
        with contextlib.suppress(OSError):  # nobody has the terminal open any more
            while True:
                printed += os.read(master, 65536)
        return process.wait(), printed
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_in_a_terminal_it_goes_on_until_a_key_and_leaves_the_screen_as_it_was(tmp_path: Path) -> None:
    with counting(2, tmp_path, samples=50):
        code, printed = in_terminal(b"sq")
        assert code == 0
        assert b"train.py" in printed
        assert b"s sort: wait" in printed
        assert printed.count(b"\x1b[?1049h") == printed.count(b"\x1b[?1049l") == 1
        code, printed = in_terminal(b"\x03", "--serve", "0")
        assert code == 130
        assert printed.count(b"\x1b[?1049l") == 1
        assert b"Traceback" not in printed
        assert b"http://127.0.0.1:" in printed


def test_as_an_endpoint_without_a_terminal(tmp_path: Path) -> None:
    with counting(1, tmp_path, samples=50):
        process = subprocess.Popen(
            [*COMMAND, "--serve", "0"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        url = process.stderr.readline().rpartition(" ")[2].strip()
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert b'shardstream_samples_total{job_name="train.py",rank="0"' in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == "interrupted\n"
        assert process.returncode == 130
