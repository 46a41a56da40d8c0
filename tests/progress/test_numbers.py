"""The numbers of progress: rates, what is left, many threads, and what users may give."""

from __future__ import annotations

import threading

import pytest

import shardstream as ss
from shardstream.progress import Bytes, Progress, Reporter


def test_without_a_rate_no_time_is_told() -> None:
    assert Progress(done_bytes=5, total_bytes=9, found_bytes=5, seconds=1.0).seconds_left == 0
    assert Progress(total_bytes=9).bytes_per_second == 0


def test_bytes_of_many_threads_are_added_and_reported_in_order() -> None:
    seen: list[Progress] = []
    done = Bytes(seen.append, 800)
    threads = [threading.Thread(target=lambda: [done.add(1) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [now.done_bytes for now in seen] == list(range(801))
    assert {now.total_bytes for now in seen} == {800}


@pytest.mark.parametrize("wrong", ["yes", 1, []])
def test_what_is_no_progress_is_refused(wrong, tmp_path) -> None:
    with pytest.raises(ss.OptionError, match="progress"):
        Reporter(wrong)
    with pytest.raises(ss.OptionError, match="progress"):
        ss.pack([{"__key__": "a", "txt": "b"}], tmp_path / "out", progress=wrong)
    assert not (tmp_path / "out").exists()
