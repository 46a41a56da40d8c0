"""The uploader: it tries again for as long as the store is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shardstream.logs import Log, read, uploader
from tests.watch import descriptors, ended

Maker = Callable[..., Log]


def test_it_goes_on_after_thousands_of_failures(
    made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "_SHORTEST_PAUSE", 0.01)
    (tmp_path / "file").write_text("")
    log = made(str(tmp_path / "file" / "log"))
    upload = log._stream._uploader
    assert upload is not None
    log.write(step=1)
    log.flush(timeout=0)
    assert ended(lambda: upload._failures > 0)
    upload._failures = 5000
    failed = upload._failures
    upload.hurry()
    assert ended(lambda: upload._failures > failed)
    assert not upload.ended
    (tmp_path / "file").unlink()
    assert log.close()
    assert [row["step"] for row in read(str(tmp_path / "file" / "log"))] == [1]


def test_new_segments_do_not_shorten_the_pause(made: Maker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = made(str(tmp_path / "file" / "log"), segment="1KiB", spool_limit="4MiB")
    upload = log._stream._uploader
    assert upload is not None
    log.write(step=1)
    log.flush(timeout=0)
    assert ended(lambda: upload._failures > 0)
    upload._failures = 5  # the next pause is long
    upload.hurry()
    assert ended(lambda: upload._failures == 6)
    for number in range(500):
        log.write(step=number, text="x" * 900)
    assert ended(lambda: log._stream.spool.wakeups.empty())
    assert upload._failures == 6
    (tmp_path / "file").unlink()
    assert log.close()


def test_a_flush_for_each_row_takes_few_descriptors_while_the_store_is_away(
    made: Maker, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    log = made(str(tmp_path / "file" / "log"))
    log.write(step=0)
    assert not log.flush(timeout=0)
    assert ended(lambda: log.stats()["error"])
    before = descriptors()
    for number in range(1, 600):
        log.write(step=number)
        assert not log.flush(timeout=0)
    assert descriptors() <= before + 2
    (tmp_path / "file").unlink()
    assert log.flush(timeout=60)  # what was not sealed while the store was away is uploaded, too
    assert [row["step"] for row in read(str(tmp_path / "file" / "log"))] == list(range(600))
    assert log.dropped == 0
