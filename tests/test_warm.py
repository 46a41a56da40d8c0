"""warm(): exactly what a machine's ranks read is in the cache before they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import shardstream as ss
from shardstream.cli.app import app
from shardstream.errors import OptionError


@pytest.fixture
def packed(corpus: Path, tmp_path: Path) -> Path:
    ss.pack(corpus, tmp_path / "packed", workers=1, frame_size="2KiB", shard_size="8KiB")
    return tmp_path / "packed"


def cache(tmp_path: Path, **options: Any) -> ss.Cache:
    """A cache that a local dataset goes through as a remote one does."""
    return ss.Cache(tmp_path / "cache", always=True, **options)


def read(packed: Path, kept: ss.Cache, rank: int, size: int, seed: int = 3) -> dict[str, Any]:
    """The statistics of an epoch of one rank."""
    ds = ss.StreamingDataset(packed, shuffle=ss.Shuffle(seed), cache=kept, topology=ss.Topology(rank, size))
    loader = ss.StreamingLoader(ds, 5)
    assert sum(batch.size for batch in loader) == len(loader) * 5
    return loader.stats()


@pytest.mark.parametrize("disk_format", ["stored", "raw"])
def test_what_was_warmed_is_not_fetched_again(packed: Path, tmp_path: Path, disk_format: str) -> None:
    kept = cache(tmp_path, disk_format=disk_format)
    report = ss.warm(packed, kept, ranks=[0, 1], dp_size=4, seed=3)
    assert report.complete
    assert report.present + report.fetched == report.wanted > 0  # indexes come while it is being planned
    for rank in (0, 1):
        stats = read(packed, kept, rank, 4)
        assert stats["remote_bytes"] == 0
        assert stats["disk_bytes"] > 0
    again = ss.warm(packed, kept, ranks=[0, 1], dp_size=4, seed=3)
    assert (again.present, again.fetched) == (report.wanted, 0)


def test_ranks_of_another_machine_are_not_warmed(packed: Path, tmp_path: Path) -> None:
    kept = cache(tmp_path)
    some = ss.warm(packed, kept, ranks=[0], dp_size=8, seed=3)
    rest = ss.warm(packed, kept, check=True)
    assert some.wanted < rest.wanted
    assert rest.missing == rest.wanted - some.wanted
    assert not rest.complete


def test_a_limit_leaves_out_what_is_needed_last(packed: Path, tmp_path: Path) -> None:
    kept = cache(tmp_path)
    report = ss.warm(packed, kept, limit="64KiB")
    assert report.complete
    assert report.left_out > 0
    assert report.present + report.fetched == report.wanted


def test_damage_is_reported_and_fetched_anew(packed: Path, tmp_path: Path) -> None:
    kept = cache(tmp_path)
    ss.warm(packed, kept)
    frames = [path for path in (tmp_path / "cache").rglob("*") if path.name.isdigit() and path.is_file()]
    largest = max(frames, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert len(ss.warm(packed, kept, check=True).corrupt) == 1
    assert sum(read(packed, kept, rank, 2)["refetches"] for rank in range(2)) >= 1
    assert not ss.warm(packed, kept, check=True).corrupt


def test_options_that_do_not_fit(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="always=True"):
        ss.warm(packed, tmp_path / "cache")
    with pytest.raises(OptionError, match="go together"):
        ss.warm(packed, cache(tmp_path), ranks=[0])
    with pytest.raises(OptionError, match="at least one"):
        ss.warm(packed, cache(tmp_path), ranks=[], dp_size=4)
    for ranks in ("3-0", "0-x", ""):
        command = ["warm", str(packed), "--cache", str(tmp_path), "--ranks", ranks, "--world", "4"]
        assert isinstance(CliRunner().invoke(app, command).exception, OptionError)


def test_the_commands(packed: Path, tmp_path: Path) -> None:
    folder, run = str(tmp_path / "cache"), CliRunner().invoke
    command = ["warm", str(packed), "--cache", folder, "--always", "--json"]
    assert run(app, [*command, "--check"]).exit_code == 1
    done = run(app, [*command, "--ranks", "0-1", "--world", "4", "--seed", "3"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["complete"]
    info = json.loads(run(app, ["cache", folder, "info", "--json"]).stdout)
    assert info["blocks"] == report["wanted"]
    assert run(app, ["cache", folder, "verify"]).exit_code == 0
    assert run(app, ["cache", folder, "clear"]).exit_code == 0
    assert json.loads(run(app, ["cache", folder, "info", "--json"]).stdout)["blocks"] == 0
