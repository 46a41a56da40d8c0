"""Packs, checkpoints, weights and logs are counted where they work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import shardstream as ss
from shardstream.counters.snapshots import Snapshot, read_own
from tests.watch import ended


@pytest.fixture
def since() -> Snapshot:
    return read_own()


def test_a_pack(tmp_path: Path, since: Snapshot) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(50)))
    manifest = ss.pack(source, tmp_path / "packed", workers=1)
    found = read_own().since(since)
    values = found.values
    assert (values["packed_rows"], values["packed_shards"]) == (50, len(manifest.shards))
    assert values["packed_bytes"] == sum(shard.bytes for shard in manifest.shards)
    assert values["pack_tasks"] == values["pack_tasks_done"] == found.stages["task"].count == 1


def test_a_writer(tmp_path: Path, since: Snapshot) -> None:
    with ss.Writer(tmp_path / "written") as writer:
        for number in range(10):
            writer.write({"__key__": f"{number}", "txt": "x"})
    values = read_own().since(since).values
    assert (values["packed_rows"], values["packed_shards"]) == (10, 1)


def test_checkpoints_and_their_weights(tmp_path: Path, since: Snapshot) -> None:
    torch = pytest.importorskip("torch")
    saves = ss.Checkpoints(tmp_path / "run")
    state = {"model": torch.nn.Linear(8, 8), "array": np.ones(4)}
    assert saves.save(7, state)
    assert saves.wait()
    found = read_own().since(since)
    values = found.values
    assert (values["saves"], values["commits"], values["saves_failed"], values["checkpoint_step"]) == (
        1,
        1,
        0,
        7,
    )
    assert values["checkpoint_bytes"] >= 4 * 72
    assert found.stages["save"].count == found.stages["durable"].count == 1
    ss.load_weights(saves.folder(7))
    values = read_own().since(since).values
    assert values["weight_tensors"] >= 2
    assert values["weight_bytes"] >= 4 * 72


def test_a_log(tmp_path: Path, since: Snapshot) -> None:
    with ss.Log(str(tmp_path / "logs"), spool=tmp_path / "spool", segment="1KiB") as log:
        for number in range(20):
            log.write(step=number)
        log.write(text="x" * 2000)  # longer than a segment: dropped
    values = read_own().since(since).values
    assert (values["log_rows"], values["log_dropped"]) == (21, 1)
    assert values["log_shipped"] >= 20
    assert values["log_waiting_bytes"] == 0


def test_rows_of_a_log_are_counted_before_they_are_uploaded(tmp_path: Path, since: Snapshot) -> None:
    with ss.Log(str(tmp_path / "logs"), spool=tmp_path / "spool", seconds=1000) as log:
        for number in range(20):
            log.write(step=number)
        assert ended(lambda: read_own().since(since).values["log_rows"] == 20)
        assert read_own().since(since).values["log_shipped"] == 0
