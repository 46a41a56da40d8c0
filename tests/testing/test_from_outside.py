"""The contracts as somebody uses them in a project of his own: sound code passes, broken code fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shardstream

ROOT = Path(shardstream.__file__).parents[1]

PROJECT = '''
from dataclasses import dataclass, replace

import pytest

import shardstream as ss
from shardstream.packing.sources import FileSpan, Sample, Task
from shardstream.storage.inputs import read_slice
from shardstream.storage.local_store import LocalStore
from shardstream.testing import DatasetContract, SourceContract, StoreContract


@dataclass(frozen=True)
class Lines:
    """Fixed lines of four bytes; a file may be cut between any two."""

    numbered: bool = False
    name: str = "lines"

    def options(self):
        return {}

    def plan(self, files, target):
        step = max(4, target // 4 * 4)
        return [
            Task(number, (span,))
            for number, span in enumerate(
                FileSpan(file.url, start, min(start + step, file.size), file.size, "")
                for file in files
                for start in range(0, file.size, step)
            )
        ]

    def read(self, task):
        (span,) = task.files
        data = bytes(read_slice(span.url, span.start, span.end - span.start))
        for at in range(0, len(data), 4):
            key = f"{task.number}-{at}" if self.numbered else f"line-{span.start + at}"
            yield Sample(key, {"txt": data[at : at + 3]}, f"{span.url}:{at}")


class TestLines(SourceContract):
    @pytest.fixture
    def source(self):
        return Lines()

    @pytest.fixture
    def inputs(self, tmp_path):
        (tmp_path / "in.lines").write_bytes(b"abc\\ndef\\nghi\\n")
        return tmp_path / "in.lines"

    @pytest.fixture
    def expected(self):
        return [(f"line-{at}", {"txt": text}) for at, text in ((0, b"abc"), (4, b"def"), (8, b"ghi"))]


class TestKeysThatDependOnTheCut(TestLines):
    @pytest.fixture
    def source(self):
        return Lines(numbered=True)


class TestStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return LocalStore(str(tmp_path / "root"))


class Short(LocalStore):
    def read_range(self, path, start, size):
        return super().read_range(path, start, max(0, size - 1))


class TestShortRanges(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return Short(str(tmp_path / "root"))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = "".join('{"id": "%d", "text": "text %d"}\\n' % (n, n) for n in range(45))
    (folder / "in.jsonl").write_text(rows)
    ss.pack(folder / "in.jsonl", folder / "packed", workers=1, frame_size=64, shard_size=256)
    return folder / "packed"


class TestDataset(DatasetContract):
    @pytest.fixture
    def opened(self, url):
        return lambda topology: ss.StreamingDataset(url, shuffle=ss.Shuffle(1), topology=topology)


class TestRanksOfDifferentOrders(DatasetContract):
    @pytest.fixture
    def opened(self, url):
        def opened(topology):
            return ss.StreamingDataset(url, shuffle=ss.Shuffle(topology.dp_rank), topology=topology)

        return opened


class TestNothingGiven(DatasetContract):
    pass
'''


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Of each class of the project, the outcome of each of its tests."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_project.py").write_text(PROJECT)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:cacheprovider", "test_project.py"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "COLUMNS": "300"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, dict[str, str]] = {}
    for outcome, name, test in re.findall(
        r"^(\w+) test_project\.py::(\w+)::(\S+)", done.stdout, re.MULTILINE
    ):
        found.setdefault(name, {})[test] = outcome
    return found


@pytest.mark.parametrize("name", ["TestLines", "TestStore", "TestDataset"])
def test_sound_code_keeps_the_contract(outcomes: dict[str, dict[str, str]], name: str) -> None:
    assert set(outcomes[name].values()) == {"PASSED"}
    assert len(outcomes[name]) >= 10


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("TestKeysThatDependOnTheCut", "test_every_cut_gives_the_same_samples[1]"),
        ("TestShortRanges", "test_a_range_is_exact_or_an_error"),
        ("TestRanksOfDifferentOrders", "test_the_order_is_the_same_for_any_number_of_ranks"),
        ("TestRanksOfDifferentOrders", "test_a_loader_saves_and_resumes[drop]"),
    ],
)
def test_broken_code_fails_where_it_is_broken(
    outcomes: dict[str, dict[str, str]], name: str, test: str
) -> None:
    assert outcomes[name][test] == "FAILED"
    assert "PASSED" in outcomes[name].values()


def test_a_subclass_without_its_fixture_is_an_error(outcomes: dict[str, dict[str, str]]) -> None:
    assert set(outcomes["TestNothingGiven"].values()) == {"ERROR"}
