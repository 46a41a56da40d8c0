"""What loaders count: `stats()` for each of them exactly, and the sums for their process, wherever it is."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstream as ss
from shardstream.counters.snapshots import read_all, read_own


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "texts"
    with ss.Writer(folder, frame_size="4KiB") as writer:
        for number in range(200):
            writer.write({"__key__": f"{number}", "txt": "lorem ipsum " * 20})
    return str(folder)


def transformed(sample: Any) -> Any:
    return sample


def test_each_loader_counts_its_own_and_the_process_all(texts: str) -> None:
    before = read_own()
    loaders = [
        ss.StreamingLoader(ss.StreamingDataset(texts), batch_size=size, threads=2) for size in (10, 20)
    ]
    threads = [threading.Thread(target=lambda each=each: list(each)) for each in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (loader.stats() for loader in loaders)
    assert (first["batches"], first["samples"]) == (20, 200)
    assert (second["batches"], second["samples"]) == (10, 200)
    assert first["stages"]["step"]["count"] == first["stages"]["batch"]["count"] == 20
    found = read_own().since(before)
    assert (found.values["batches"], found.values["samples"]) == (30, 400)
    assert found.stages["step"].count == 30
    frames = first["frames"] + second["frames"]
    assert found.values["frames"] == found.stages["decompress"].count == frames
    assert first["stages"]["fetch"]["count"] == first["frames"]
    assert found.values["waiting_since"] == 0
    for stats in (first, second):
        waits = stats["stages"]["wait"]
        assert waits["seconds"] == pytest.approx(stats["wait_seconds"])
        assert stats["batches"] <= waits["count"] <= stats["batches"] + 1  # one may be for the end
        assert waits["p50"] <= waits["p95"] <= waits["p99"]
        assert set(stats["memory"]) == {"ram", "prefetch"}


def test_an_epoch_that_is_left_counts_what_was_delivered(texts: str) -> None:
    before = read_own()
    loader = ss.StreamingLoader(ss.StreamingDataset(texts), batch_size=10)
    batches = iter(loader)
    next(batches)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert read_own().since(before).values["batches"] == loader.stats()["batches"] == 2


def test_a_process_of_its_own_has_its_own_file_and_its_stages_come_home(
    texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDSTREAM_COUNTERS", str(tmp_path))
    ds = ss.StreamingDataset(texts, transform=transformed)
    before = read_own()
    loader = ss.StreamingLoader(ds, batch_size=10, engine="process", threads=2)
    batches = iter(loader)
    next(batches)
    theirs = [each for each in read_all() if each.header.activities == {"reader"}]
    assert len(theirs) == 1
    assert len(list(batches)) == 19
    stats = loader.stats()
    assert (stats["batches"], stats["samples"]) == (20, 200)
    stages = stats["stages"]
    assert stages["transform"]["count"] == stages["batch"]["count"] == 20
    assert stages["fetch"]["count"] == stages["decompress"]["count"] == stats["frames"]
    assert stages["step"]["count"] == 20
    assert stages["wait"]["seconds"] == pytest.approx(stats["wait_seconds"])
    # Each number is in one of the two files.
    mine = read_own().since(before)
    assert (mine.values["batches"], mine.stages["step"].count, mine.stages["batch"].count) == (20, 20, 0)
    (there,) = (each for each in read_all() if each.header.pid == theirs[0].header.pid)
    assert (there.values["batches"], there.stages["step"].count) == (0, 0)
    assert there.stages["batch"].count == 20
    for _ in loader:
        pass
    assert loader.stats()["stages"]["batch"]["count"] == loader.stats()["stages"]["transform"]["count"] == 40
    loader.close()
    assert [each for each in read_all() if each.header.pid == there.header.pid] == []


def test_tokens_that_the_consumer_builds_are_counted_together(tmp_path: Path) -> None:
    with ss.Writer(tmp_path / "tokens", tokens=True) as writer:
        for _ in range(8):
            writer.write(np.arange(10_000, dtype=np.uint16))
    loader = ss.StreamingLoader(ss.TokenDataset(str(tmp_path / "tokens"), seq_len=99), batch_size=4)
    batches = len(list(loader))
    stages = loader.stats()["stages"]
    assert stages["step"]["count"] == stages["batch"]["count"] == batches == len(loader)
    assert stages["decode"]["count"] == 0
