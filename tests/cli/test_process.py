"""The command as a process of its own: imports, pipes, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-W", "error", "-m", "shardstream"]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


@pytest.fixture
def dataset(corpus: Path, tmp_path: Path) -> Path:
    done = _run("pack", corpus, tmp_path / "dataset", "--workers", 2)
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path / "dataset"


def test_help_imports_nothing_heavy() -> None:
    ours = [f"shardstream.{name}" for name in ("packing.sources", "packing.packer", "read", "storage")]
    heavy = {"torch", "numpy", "rich", "fsspec", "zstandard", *ours}
    code = f"import sys, shardstream.cli.app; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_command_imports_torch(dataset: Path) -> None:
    code = (
        "import sys; from shardstream.cli.app import run;"
        f"assert run(['verify', {str(dataset)!r}, '--deep']) == 0;"
        f"assert run(['info', {str(dataset)!r}]) == 0;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_exit_codes(dataset: Path, tmp_path: Path) -> None:
    assert _run("info", dataset).returncode == 0
    failed = _run("info", tmp_path / "missing")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
    assert _run("info").returncode == 2
    assert _run("verify", tmp_path / "missing").returncode == 2
    assert "Traceback" in _run("--debug", "info", tmp_path / "missing").stderr


def test_cat_writes_raw_bytes(tmp_path: Path) -> None:
    data = bytes(range(256))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert _run("pack", tmp_path / "tree", tmp_path / "out", "--format", "images").returncode == 0
    command = [*COMMAND, "cat", str(tmp_path / "out"), "0", "--field", "png"]
    assert subprocess.run(command, capture_output=True, check=True).stdout.endswith(data)


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--limit", "1"], ["info"]])
def test_closed_pipe_is_quiet(dataset: Path, arguments: list[str]) -> None:
    command = [*COMMAND, arguments[0], str(dataset), *arguments[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=250) == 1
