"""What the tests of logs share."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shardstream.logs import Log


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for spools; the system's temporary folder is another one."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def made(tmp_path: Path, spool: Path) -> Iterator[Callable[..., Log]]:
    """Makes a log in tmp_path / "log" whose rows wait until they are asked for."""

    logs: list[weakref.ref[Log]] = []

    def make(url: str | None = None, **options: Any) -> Log:
        log = Log(url or str(tmp_path / "log"), **{"spool": spool, "seconds": 1000, "rank": 0} | options)
        logs.append(weakref.ref(log))
        return log

    yield make
    for each in logs:
        if (log := each()) is not None:
            log.close(timeout=1)


def files(folder: Path) -> list[Path]:
    """The segments below a folder of spools."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Rows:
    """A sink that holds what it gets. `gate` holds it up, `error` is raised."""

    def __init__(self, error: Exception | None = None) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.closed = False
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self._error = error

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.entered.set()
        self.gate.wait()
        if self._error is not None:
            raise self._error
        self.rows += rows

    def close(self) -> None:
        self.closed = True
