"""Progress: plain lines now and then, a bar at a terminal, nothing when quiet."""

from __future__ import annotations

import pytest

from shardstream.cli import progress
from shardstream.pack.progress import Progress

NOW = Progress(1 << 20, 4 << 20, 10, 1, 1, 4, 2.0)


def test_quiet_has_no_callback() -> None:
    with progress.shown("packing", quiet=True) as show:
        assert show is None
    with progress.counted("exporting", quiet=True) as count:
        assert count is None


def test_plain_lines_are_rare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.shown("packing", quiet=False) as show, progress.counted("exporting", quiet=False) as count:
        assert show is not None
        assert count is not None
        show(NOW)
        count(1, 2)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress, "_EVERY", 0.0)
        show(NOW)
        count(1, 2)
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.splitlines() == [
        "packing: 1.0 MiB of 4.0 MiB, 512.0 KiB/s, 10 samples, 1 rejected, 6 s left",
        "exporting: 1 of 2 samples",
    ]


def test_bar_at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress.shown("packing", quiet=False) as show:
        assert show is not None
        show(NOW)
    with progress.counted("exporting", quiet=False) as count:
        assert count is not None
        count(1, 2)
    out, errors = capsys.readouterr()
    assert out == ""
    assert "packing" in errors
    assert "10 samples, 1 rejected" in errors
    assert "exporting" in errors
