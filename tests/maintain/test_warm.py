"""warm(): exactly what a machine's ranks read is in the cache before they do."""

from __future__ import annotations

import json
import subprocess
import sys
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
    for rank in (0, 1):
        stats = read(packed, kept, rank, 4)
        assert stats["remote_bytes"] == 0
        assert stats["disk_bytes"] > 0
    assert (report.present, report.fetched) == (0, report.wanted)  # of an empty cache
    again = ss.warm(packed, kept, ranks=[0, 1], dp_size=4, seed=3)
    assert (again.present, again.fetched) == (report.wanted, 0)


def info(folder: Path) -> str:
    """What lies in a cache, as JSON."""
    return CliRunner().invoke(app, ["cache", str(folder), "info", "--json"]).stdout


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
    assert report.filled
    assert report.left_out > 0
    assert not report.complete  # the job would fetch what was left out
    assert report.present + report.fetched == report.wanted
    assert json.loads(info(tmp_path / "cache"))["bytes"] <= 64 << 10


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


def test_a_limit_of_nothing_fetches_nothing(packed: Path, tmp_path: Path) -> None:
    for limit in (0, "0"):
        report = ss.warm(packed, cache(tmp_path), limit=limit)
        assert (report.wanted, report.fetched, report.complete) == (0, 0, False)
    assert json.loads(info(tmp_path / "cache"))["blocks"] == 0


@pytest.mark.parametrize("ranks", [None, [1]])
def test_a_check_keeps_nothing_and_tells_what_is_missing(
    packed: Path, tmp_path: Path, ranks: list[int] | None
) -> None:
    kept, options = cache(tmp_path), {"ranks": ranks, "dp_size": ranks and 2}
    before = ss.warm(packed, kept, check=True, **options)
    assert before.missing == before.wanted > 0
    assert json.loads(info(tmp_path / "cache"))["blocks"] == 0
    assert ss.warm(packed, kept, **options).wanted == before.wanted
    after = ss.warm(packed, kept, check=True, **options)
    assert after.complete
    assert after.present == before.wanted


def test_progress_ends_at_its_total(packed: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    report = ss.warm(packed, cache(tmp_path), ranks=[0, 3], dp_size=4, progress=told.append)
    assert all(now.done_bytes <= now.total_bytes for now in told)
    assert told[-1].done_bytes == told[-1].total_bytes == report.wanted_bytes
    assert [now.done_bytes for now in told] == sorted(now.done_bytes for now in told)


def test_two_at_once_share_the_work(packed: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "shardstream", "warm", str(packed), "--cache", str(tmp_path / "cache"),
        "--always", "--json",
    ]  # fmt: skip
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in running:
        report = json.loads(process.communicate(timeout=250)[0])
        assert process.returncode == 0
        assert report["present"] + report["fetched"] == report["wanted"]
    assert json.loads(info(tmp_path / "cache"))["blocks"] == report["wanted"]


def test_killed_and_repeated(packed: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys, shardstream as ss\n"
        "def halfway(now):\n    if now.done_bytes * 2 > now.total_bytes: os.kill(os.getpid(), 9)\n"
        "ss.warm(sys.argv[1], ss.Cache(sys.argv[2], always=True), progress=halfway)"
    )
    killed = subprocess.run([sys.executable, "-c", program, packed, tmp_path / "cache"], timeout=250)
    assert killed.returncode == -9
    assert ss.warm(packed, cache(tmp_path)).complete
    assert ss.warm(packed, cache(tmp_path), check=True).complete


def test_a_dataset_brings_its_own_options(packed: Path, tmp_path: Path) -> None:
    ds = ss.StreamingDataset(packed, cache=cache(tmp_path), topology=ss.Topology(1, 4))
    for wrong in ({"cache": tmp_path}, {"dp_size": 2}, {"seed": 1}, {"shuffle": False}, {"seq_len": 3}):
        with pytest.raises(OptionError):
            ss.warm(ds, **wrong)
    with pytest.raises(OptionError, match="always=True"):
        ss.warm(ss.StreamingDataset(packed))
    with pytest.raises(OptionError, match="seq_len"):
        ss.warm(packed, cache(tmp_path), tail="pad")
    some = ss.warm(ds)
    assert 0 < some.wanted < ss.warm(packed, cache(tmp_path), check=True).wanted
    # From the place on where it is: the second half of an epoch is less than the whole.
    ds.load_state_dict(ds.state_dict() | {"position": ds.total // 2})
    assert ss.warm(ds, check=True).wanted < some.wanted


def test_the_options_of_tokens(tmp_path: Path, corpus: Path) -> None:
    ss.pack(
        corpus, tmp_path / "t", workers=1, tokenizer="bytes", eos=256, frame_size="2KiB", shard_size="8KiB"
    )
    folder, run = tmp_path / "cache", CliRunner().invoke
    command = ["warm", str(tmp_path / "t"), "--cache", str(folder), "--always", "--seq-len", "64"]
    command += ["--ranks", "1", "--world", "3", "--seed", "3"]
    for more, options in (
        (["--scope", "lane"], {"shuffle": ss.Shuffle(3, scope="lane")}),
        (["--pack", "best-fit"], {"pack": "best-fit", "shuffle": ss.Shuffle(3)}),
        (["--tail", "pad"], {"tail": "pad", "shuffle": ss.Shuffle(3)}),
    ):
        assert run(app, ["cache", str(folder), "clear"]).exit_code in (0, 1)
        done = run(app, [*command, *more, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["present"] == 0
        ds = ss.TokenDataset(
            tmp_path / "t", seq_len=64, cache=cache(tmp_path), topology=ss.Topology(1, 3), **options
        )
        assert ss.warm(ds, check=True).complete
        assert ss.warm(ds).fetched == 0
        assert run(app, [*command, *more, "--check", "--limit", "1KiB"]).exit_code == 0
