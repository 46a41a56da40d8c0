"""The command line in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardstream.cli import app as application


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line as `main` does; returns (exit code, stdout, stderr)."""

    def runner(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = application.run([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return runner
