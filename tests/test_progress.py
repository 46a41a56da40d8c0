"""Progress: plain lines now and then, a bar at a terminal, nothing when quiet."""

from __future__ import annotations

import pytest

from shardstream import progress
from shardstream.progress import Progress

PACKING = Progress(
    done_bytes=1 << 20, total_bytes=4 << 20, samples=10, rejected=1, done_tasks=1, total_tasks=4, seconds=2.0
)
EXPORTING = Progress(samples=1, total_samples=2)
WARMING = Progress(done_bytes=3 << 20, total_bytes=4 << 20, found_bytes=1 << 20, seconds=2.0)


def test_quiet_has_no_callback() -> None:
    with progress.shown("packing", quiet=True) as show:
        assert show is None


def test_plain_lines_are_rare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.shown("packing", quiet=False) as show, progress.shown("exporting", quiet=False) as count:
        assert show is not None
        assert count is not None
        show(PACKING)
        count(EXPORTING)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress, "_EVERY", 0.0)
        show(PACKING)
        show(WARMING)
        count(EXPORTING)
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.splitlines() == [
        "packing: 1.0 MiB of 4.0 MiB, 512.0 KiB/s, 10 samples, 1 rejected, 6 s left",
        "packing: 3.0 MiB of 4.0 MiB, 1.0 MiB/s, 1 s left",
        "exporting: 1 of 2 samples",
    ]


def test_bar_at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with progress.shown("packing", quiet=False) as show:
        assert show is not None
        show(PACKING)
    with progress.shown("exporting", quiet=False) as count:
        assert count is not None
        count(EXPORTING)
    out, errors = capsys.readouterr()
    assert out == ""
    assert "packing" in errors
    assert "10 samples, 1 rejected" in errors
    assert "exporting" in errors
    assert "1 of 2 samples" in errors


def test_without_a_rate_no_time_is_told() -> None:
    assert Progress(done_bytes=5, total_bytes=9, found_bytes=5, seconds=1.0).seconds_left == 0
    assert Progress(total_bytes=9).bytes_per_second == 0
