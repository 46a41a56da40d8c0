"""Where progress is shown: lines of a log, rows of a terminal, a bar of a notebook."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

import shardstream as ss
from shardstream import progress
from shardstream.progress import Progress, display, notebook

HALF = Progress(done_bytes=1 << 20, total_bytes=2 << 20, samples=10, seconds=2.0)
ROWS = [{"__key__": str(number), "txt": "text"} for number in range(10)]


@pytest.fixture(autouse=True)
def _no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)


def test_quiet_has_no_callback() -> None:
    with progress.shown("packing", quiet=True) as show:
        assert show is None


def test_a_log_gets_a_line_now_and_then_and_nothing_else(capsys, monkeypatch) -> None:
    clock = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: clock)
    with progress.shown("packing", quiet=False) as show:
        assert show is not None
        for clock in (100.0, 104.9, 105.0, 109.9, 110.0, 170.0, 229.0, 231.0):  # noqa: B007
            show(HALF)
    out, errors = capsys.readouterr()
    assert out == ""
    lines = errors.splitlines()
    assert lines[0] == "packing: 1.0 MiB of 2.0 MiB, 512.0 KiB/s, 10 samples, 2.0 s left"
    assert len(lines) == 4  # at 5, 10, 70 and 131 s: once a minute after the first one
    assert "\x1b" not in errors
    assert "\r" not in errors


class Broken:
    """A stream whose reader has ended."""

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


@pytest.mark.parametrize("stream", [Broken(), None])
def test_nobody_reads_stderr(stream, monkeypatch) -> None:
    monkeypatch.setattr(display, "_EVERY", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with progress.shown("packing", quiet=False) as show:
            assert show is not None
            show(HALF)


class Screen:
    """Runs a script whose standard error is a terminal, and whose standard output is a pipe."""

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def run(self, script: str, **environment: str) -> tuple[int, str, str]:
        leader, follower = pty.openpty()
        env = os.environ | {"COLUMNS": str(self.columns), "TERM": "xterm-256color"} | environment
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=follower, env=env, text=True,
            cwd=Path(ss.__file__).parents[1],
        )  # fmt: skip
        os.close(follower)
        drawn: list[bytes] = []

        def read() -> None:
            while True:
                try:
                    data = os.read(leader, 1 << 16)
                except OSError:  # the last process that has the terminal has ended
                    return
                drawn.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()  # which does nothing if it has ended
            reader.join(30)
        os.close(leader)
        return process.returncode, out, b"".join(drawn).decode()


SCRIPT = """
import sys
import threading
from shardstream.progress import Progress, shown

def work(name):
    with shown(name, quiet=False) as show:
        for done in range(3):
            show(Progress(done_bytes=done << 20, total_bytes=2 << 20, seconds=1.0))
            sys.stdout.write(f"data of {name}\\n")
            both.wait()

both = threading.Barrier(2)
threads = [threading.Thread(target=work, args=(name,)) for name in ("first", "second")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_two_at_once_share_the_terminal_and_leave_stdout_alone() -> None:
    code, out, drawn = Screen(100).run(SCRIPT)
    assert code == 0
    assert sorted(out.splitlines()) == ["data of first"] * 3 + ["data of second"] * 3
    last = drawn.rpartition("first")[2] + drawn.rpartition("second")[2]
    assert last.count("2.0 MiB of 2.0 MiB") >= 2
    assert "Error" not in drawn
    assert drawn.rstrip().endswith("\x1b[?25h")  # the cursor is there again


def test_a_forked_process_prints_past_the_bar() -> None:
    script = """
import os
import sys
from shardstream.progress import Progress, shown

real = sys.stderr
with shown("parent", quiet=False) as show:
    show(Progress(done_bytes=1, total_bytes=2, seconds=1.0))
    assert sys.stderr is not real
    if (child := os.fork()) == 0:
        os._exit(0 if sys.stderr is real else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert Screen(100).run(script)[:2] == (0, "0\n")


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    code, _, drawn = Screen(80).run(SCRIPT, TERM="dumb")
    assert (code, drawn) == (0, "")  # it was over before the first line was due


def test_an_exception_ends_the_bar_and_goes_on(tmp_path: Path) -> None:
    script = """
import shardstream as ss
def rows():
    yield {"__key__": "a", "txt": "b"}
    raise KeyboardInterrupt
try:
    ss.pack(rows(), PLACE, progress=True)
except BaseException as error:
    print(type(error).__name__)
"""
    code, out, drawn = Screen(40).run(script.replace("PLACE", repr(str(tmp_path / "out"))))
    assert (code, out) == (0, "KeyboardInterrupt\n")
    assert "\x1b[?25h" in drawn


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[list[object]]:
    """What a notebook would show: for each bar its pictures, one after the other."""
    shown: list[list[object]] = []

    class Handle:
        def __init__(self, first: object) -> None:
            self._pictures = [first]
            shown.append(self._pictures)

        def update(self, picture: object) -> None:
            self._pictures.append(picture)

    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    module.display = lambda first, display_id: Handle(first)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(notebook, "_EVERY", 0.0)
    return shown


def test_a_notebook_gets_one_bar_that_is_updated(cells, tmp_path, capsys) -> None:
    ss.pack(iter(ROWS), tmp_path / "packed", progress=True)
    ss.warm(tmp_path / "packed", ss.Cache(tmp_path / "cache", always=True), progress=True)
    ss.verify(str(tmp_path / "packed"), progress=True)
    assert len(cells) == 3
    for pictures, title in zip(cells, ("packing", "warming", "verifying"), strict=True):
        assert repr(pictures[0]) == f"{title}: starting"
        assert repr(pictures[-1]).startswith(title)
        assert repr(pictures[-1]).endswith("done")
    assert "value=" in cells[1][-1]._repr_html_()  # type: ignore[attr-defined]
    assert capsys.readouterr() == ("", "")


def test_a_notebook_that_is_gone_stops_no_work(cells, tmp_path, monkeypatch) -> None:
    def gone(*_: object) -> None:
        raise ConnectionError("gone")

    module = sys.modules["IPython.display"]
    monkeypatch.setattr(module, "display", lambda *_, **__: types.SimpleNamespace(update=gone))
    assert ss.pack(iter(ROWS), tmp_path / "packed", progress=True).samples == len(ROWS)


def test_a_notebook_sees_that_the_work_was_stopped(cells, tmp_path) -> None:
    def rows():
        yield from ROWS
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        ss.pack(rows(), tmp_path / "packed", progress=True)
    assert repr(cells[0][-1]).endswith("stopped")
    assert "value='0' max='1'" in cells[0][-1]._repr_html_()  # type: ignore[attr-defined]


def test_ipython_in_a_terminal_is_no_notebook(cells, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: types.SimpleNamespace())
    ss.pack(iter(ROWS), tmp_path / "packed", progress=True)
    assert cells == []
