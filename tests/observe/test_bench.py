"""bench(): three phases in processes of ranks, whose relation is what it tells; nothing is left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

import shardstream as ss
from shardstream.cli import app
from shardstream.observe.bench import Bench, Phase, bench
from shardstream.observe.bench_plot import plot


def test_two_ranks_of_four(images: Path, tmp_path: Path) -> None:
    found = bench(images, 5, ranks=[0, 2], world=4, step_ms=2, seconds=1, image_size=32, cache=tmp_path / "c")
    assert found.cold.samples == found.cached.samples == 60
    assert len(found.cold.ranks) == 2
    # A step sleeps: no phase can be faster, and replayed batches take hardly longer.
    for phase in (found.replayed, found.cached, found.cold):
        assert phase.per_second <= 2 * 5 / 0.002
    assert found.preparation_stall is not None
    assert 0 <= found.preparation_stall < 1
    assert 0 <= found.fetch_stall < 1
    assert os.listdir(tmp_path / "c") == []
    drawn = tmp_path / "bench.png"
    plot(found, drawn)
    assert drawn.read_bytes().startswith(b"\x89PNG")


def phase(name: str, rate: float) -> Phase:
    return Phase(name, 100, 1.0, rate, 0.1, 0.5, 1.0, 10, (rate,))


def test_the_shares_of_stalls() -> None:
    found = Bench("u", 8, (0,), 1, 100.0, phase("replayed", 80), phase("cached", 60), phase("cold", 15))
    assert found.preparation_stall == pytest.approx(0.25)
    assert found.fetch_stall == pytest.approx(0.75)
    assert msgspec.structs.replace(found, step_ms=0.0).preparation_stall is None


def test_errors_come_from_the_ranks_and_leave_nothing(images: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(images, broken)
    for shard in broken.glob("*.tar*"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    with pytest.raises(ss.CorruptionError, match="shard"):
        bench(broken, 8, cache=tmp_path / "c", seconds=5)
    assert os.listdir(tmp_path / "c") == []
    for wrong in ({"ranks": []}, {"ranks": [3], "world": 2}, {"step_ms": -1}, {"seconds": 0}, {"seq_len": 4}):
        with pytest.raises(ss.OptionError):
            bench(images, 8, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ss.StorageError, match="no dataset"):
        bench(tmp_path / "nowhere", 8)


def test_the_commands(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        app.run(["bench", str(images), "--batch", "8", "--seconds", "2", "--json", "--image-size", "32"]) == 0
    )
    told = msgspec.json.decode(capfd.readouterr().out)
    assert told["cold"]["samples"] == 120
    profile = str(tmp_path / "profile.json")
    assert app.run(["probe", str(images), "--seconds", "2", "--image-size", "32", "--out", profile]) == 0
    assert "is the knee" in capfd.readouterr().out
    advise = ["advise", str(images), "--profile", profile, "--image-size", "32", "--step-ms", "100"]
    assert app.run(advise) == 0
    assert "Do nothing" in capfd.readouterr().out
    assert app.run(["advise", str(images), "--profile", profile]) == 2
    assert "image_size" in capfd.readouterr().err
