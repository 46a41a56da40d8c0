"""A source of another package, installed by pip: a format like any other, for the command and in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import shardstream

ROOT = Path(shardstream.__file__).parents[1]

# What a wheel holds beside its modules (PEP 427).
INFO = {
    "METADATA": "Metadata-Version: 2.1\nName: fixed-lines\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": "[shardstream.sources]\nfixed_lines = fixed_lines:FixedLines\n",
    "RECORD": "",
}

MODULE = '''
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from shardstream.packing.sources import FileSpan, Reject, Sample, SourceOptions, Task
from shardstream.storage.inputs import FileInfo, read_slice


@dataclass(frozen=True)
class FixedLines:
    """Lines of four bytes each."""

    extensions: ClassVar[tuple[str, ...]] = (".lines",)
    takes: ClassVar[frozenset[str]] = frozenset({"text_key"})

    field: str = "txt"

    @classmethod
    def make(cls, options: SourceOptions) -> "FixedLines":
        return cls(options.text_key)

    @property
    def name(self) -> str:
        return "fixed_lines"

    def options(self) -> dict[str, Any]:
        return {"field": self.field}

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        step = max(4, target // 4 * 4)
        spans = [
            FileSpan(file.url, start, min(start + step, file.size), file.size, "")
            for file in files
            for start in range(0, file.size, step)
        ]
        return [Task(number, (span,)) for number, span in enumerate(spans)]

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for span in task.files:
            data = bytes(read_slice(span.url, span.start, span.end - span.start))
            for at in range(0, len(data), 4):
                where = f"{span.url}:{span.start + at}"
                if data[at : at + 3] == b"bad":
                    yield Reject(where, "the line is bad")
                else:
                    yield Sample(f"line-{span.start + at}", {self.field: data[at : at + 3]}, where)
'''

TESTS = """
import pytest
from fixed_lines import FixedLines
from shardstream.testing import SourceContract


class TestFixedLines(SourceContract):
    @pytest.fixture
    def source(self):
        return FixedLines()

    @pytest.fixture
    def inputs(self, tmp_path):
        (tmp_path / "in.lines").write_bytes(b"abc\\ndef\\nghi\\n")
        return tmp_path / "in.lines"

    @pytest.fixture
    def expected(self):
        return [(f"line-{at}", {"txt": text}) for at, text in ((0, b"abc"), (4, b"def"), (8, b"ghi"))]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package in `site`, and its input."""
    folder = tmp_path_factory.mktemp("outside")
    wheel = folder / "fixed_lines-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fixed_lines.py", MODULE)
        for name, text in INFO.items():
            archive.writestr(f"fixed_lines-1.0.dist-info/{name}", text)
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder / "site")]
    subprocess.run([sys.executable, *install, str(wheel)], check=True, capture_output=True, timeout=250)
    (folder / "in.lines").write_bytes(b"".join(b"%03d\n" % number for number in range(300)))
    (folder / "bad.lines").write_bytes(b"abc\nbad\nghi\n")
    (folder / "test_contract.py").write_text(TESTS)
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(folder / "site"), str(ROOT)))
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=folder, timeout=250, check=False,
        env={**os.environ, "PYTHONPATH": paths, "PYTEST_ADDOPTS": ""},
    )  # fmt: skip


def test_the_command_takes_it_by_its_name(folder: Path) -> None:
    for workers in ("1", "2"):
        done = run(
            folder, "-m", "shardstream", "pack", "in.lines", f"out{workers}", "--format", "fixed_lines",
            "--text-key", "caption", "--shard-size", "400", "--frame-size", "100",
            "--workers", workers, "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["samples"] == 300
        assert shardstream.verify(str(folder / f"out{workers}"), deep=True).sound
    for name in sorted(os.listdir(folder / "out1")):
        assert (folder / "out1" / name).read_bytes() == (folder / "out2" / name).read_bytes()
    options = json.loads((folder / "out1" / "manifest.json").read_bytes())["provenance"]["options"]
    assert options["format"] == "fixed_lines"
    assert options["field"] == "caption"


def test_python_takes_the_object(folder: Path) -> None:
    code = (
        "import shardstream as ss\n"
        "from fixed_lines import FixedLines\n"
        "print(ss.pack('in.lines', 'object', format=FixedLines('caption'), shuffle=3, workers=2).samples)\n"
        "try:\n"
        "    ss.pack('in.lines', 'object2', format=FixedLines(), text_key='a')\n"
        "except ss.OptionError as error:\n"
        "    print(error)\n"
        "for wrong in (FixedLines, 3):\n"
        "    try:\n"
        "        ss.pack('in.lines', 'object2', format=wrong)\n"
        "    except ss.OptionError as error:\n"
        "        print(error)\n"
    )
    done = run(folder, "-c", code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "300"
    assert "text_key is an option of fixed_lines" in lines[1]
    assert "neither a name nor a Source" in lines[2]
    assert "neither a name nor a Source" in lines[3]
    assert not (folder / "object2").exists()


def test_its_rejects_are_handled_as_all(folder: Path) -> None:
    done = run(folder, "-m", "shardstream", "pack", "bad.lines", "bad", "--format", "fixed_lines")
    assert done.returncode == 1
    assert "bad.lines:4: the line is bad" in done.stderr
    done = run(
        folder,
        "-m",
        "shardstream",
        "pack",
        "bad.lines",
        "bad",
        "--format",
        "fixed_lines",
        "--on-error",
        "skip",
    )
    assert done.returncode == 0, done.stderr
    assert "the line is bad" in (folder / "bad" / "rejects.jsonl").read_text()


def test_options_that_it_does_not_take_are_refused(folder: Path) -> None:
    done = run(
        folder, "-m", "shardstream", "pack", "in.lines", "no", "--format", "fixed_lines", "--resize", "3"
    )
    assert done.returncode == 2
    assert "resize" in done.stderr


def test_a_name_that_is_not_there_lists_it(folder: Path) -> None:
    done = run(folder, "-m", "shardstream", "pack", "in.lines", "no", "--format", "fixed_line")
    assert done.returncode == 2
    assert "fixed_lines" in done.stderr


def test_it_keeps_the_contract(folder: Path) -> None:
    done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_contract.py")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
