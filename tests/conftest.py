"""Settings and fixtures that all tests share."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# A run in the background is told to ignore Ctrl-C, and so would the programs be that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiled once: else pytest rewrites the asserts of every file anew in each of its processes, which is most
# of the time of collecting, and each of the hundreds of programs that tests start compiles the package.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# pytest-xdist tells its workers its own width. What commands print would be broken into lines by it.
os.environ.pop("COLUMNS", None)

pytest_plugins = ["tests.servers", "tests.postgres"]

# Shared machines stall for seconds at times: a deadline per example would fail at random.
# pytest-timeout still catches a hang. Without --long the examples are the same in every run, so that
# a change is judged by the change; with it they are more, and new each time.
hypothesis.settings.register_profile(
    "default-run", deadline=None, print_blob=True, derandomize=True, max_examples=50
)
hypothesis.settings.register_profile("long-run", deadline=None, print_blob=True, max_examples=200)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests that take minutes, too")
    parser.addoption("--frameworks", action="store_true", help="collect the tests that need a framework")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests of frameworks, each of which runs in an environment of its own."""
    apart = collection_path.name == "frameworks" and not config.getoption("--frameworks")
    return apart or None


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("long-run" if config.getoption("--long") else "default-run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out; what is skipped in a report then is what cannot run here."""
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


def pytest_collection_finish() -> None:
    """Keep the collector off the half a million objects of collecting: else each of its runs takes 0.2 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A JSONL file of 100 documents with a kept column, unicode, one empty and two long texts."""
    path = tmp_path / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(100):
            text = f"document {number}: 数据 ✓ " + "lorem ipsum " * (number % 13)
            if number == 7:
                text = ""
            if number in (20, 21):
                text *= 400
            record = {"id": f"doc-{number:03d}", "text": text, "number": number}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path
