"""Many writers and one commit: the same dataset whatever the time and the order, and none if a part lacks."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Store

SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB"}


@pytest.fixture(params=["local", "memory"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"memory://parts-{os.urandom(4).hex()}/out"


def write(dest: str | Path, rank: int, world: int, count: int = 60, **options: Any) -> None:
    with ss.Writer(dest, part=(rank, world), **{**SMALL, **options}) as writer:
        for number in range(count):
            writer.write({"__key__": f"{rank}/{number}", "txt": f"{rank} {number} " * (number % 30)})


def keys(dest: str | Path) -> list[str]:
    assert not ss.verify(str(dest), deep=True).problems
    return [key for key, _ in DatasetReader.open(str(dest)).iter_samples()]


def everything(dest: str | Path) -> dict[str, bytes]:
    store = Store.open(str(dest))
    return {name: store.read(name) for name in store.list()}


def test_the_order_of_the_parts_is_that_of_their_numbers(dest: str, tmp_path: Path) -> None:
    for rank in (2, 0, 1):
        write(dest, rank, 3)
    manifest = ss.commit(dest)
    assert keys(dest) == [f"{rank}/{number}" for rank in range(3) for number in range(60)]
    assert manifest.samples == 180
    for rank in random.Random(3).sample(range(3), 3):
        write(tmp_path / "again", rank, 3, workers=4)
    ss.commit(tmp_path / "again")
    assert everything(dest) == everything(tmp_path / "again")
    assert not [name for name in everything(dest) if name.startswith(".")]
    # A job that is run again commits again.
    assert ss.commit(dest) == manifest


def test_a_missing_part_is_named_and_can_be_added(dest: str) -> None:
    write(dest, 0, 3)
    with pytest.raises(ss.CommitError, match="2 of 3 parts are missing: 1, 2"):
        ss.commit(dest)
    write(dest, 2, 3)
    with pytest.raises(ss.CommitError, match="1 of 3 parts are missing: 1"):
        ss.commit(dest)
    write(dest, 1, 3, count=0)  # a part may be empty
    assert ss.commit(dest).samples == 120


def test_nothing_to_commit(dest: str) -> None:
    with pytest.raises(ss.OptionError, match="no parts"):
        ss.commit(dest)
    with ss.Writer(dest) as writer:
        writer.write({"txt": "a"})
    with pytest.raises(ss.OptionError, match="no parts"):
        ss.commit(dest)
    empty = f"{dest}-empty"
    write(empty, 0, 1, count=0)
    with pytest.raises(ss.SourceError, match="all 1 parts are empty"):
        ss.commit(empty)


def test_a_part_that_is_written_again_gives_the_same(dest: str, tmp_path: Path) -> None:
    write(dest, 1, 2)
    write(dest, 0, 2)
    write(dest, 1, 2)
    ss.commit(dest)
    for rank in range(2):
        write(tmp_path / "once", rank, 2)
    ss.commit(tmp_path / "once")
    assert everything(dest) == everything(tmp_path / "once")


def test_a_part_that_fails_is_missing_although_it_was_there(dest: str) -> None:
    write(dest, 0, 2)
    write(dest, 1, 2)
    with pytest.raises(KeyError), ss.Writer(dest, part=(1, 2), **SMALL):
        raise KeyError("lost")
    with pytest.raises(ss.CommitError, match="missing: 1"):
        ss.commit(dest)
    write(dest, 1, 2, count=5)  # with fewer shards than before: the others go away
    assert ss.commit(dest).samples == 65
    assert len(keys(dest)) == 65
    manifest = DatasetReader.open(dest).manifest
    listed = {url for shard in manifest.shards for url in (shard.url, shard.index_url)}
    assert {name for name in everything(dest) if name.startswith("shard-")} == listed


def test_writers_have_the_same_options(dest: str) -> None:
    write(dest, 0, 2)
    with pytest.raises(ss.OptionError, match="2, not 3"):
        write(dest, 1, 3)
    with pytest.raises(ss.OptionError, match="other options"):
        write(dest, 1, 2, shard_size="5KiB")
    with pytest.raises(ss.OptionError, match="other options"):
        write(dest, 1, 2, tokens=True)


def test_packs_keep_away_from_parts(dest: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("line\n")
    write(dest, 0, 2)
    for other in (lambda: ss.pack(tmp_path / "in.txt", dest, workers=1), lambda: ss.Writer(dest)):
        with pytest.raises(ss.CommitError, match="2 parts are written here"):
            other()
    write(dest, 1, 2)
    assert ss.commit(dest).samples == 120


def test_parts_keep_away_from_packs_and_datasets(dest: str) -> None:
    with pytest.raises(KeyError), ss.Writer(dest, **SMALL):
        raise KeyError("lost")
    with pytest.raises(ss.CommitError, match="another packer has claimed"):
        write(dest, 0, 2)
    with ss.Writer(f"{dest}-done") as writer:
        writer.write({"txt": "a"})
    with pytest.raises(ss.CommitError, match="already holds a dataset"):
        write(f"{dest}-done", 0, 2)


def test_one_part_twice_at_once_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardstream.packing.reservation._LOCK_TIMEOUT", 0.2)
    with ss.Writer(tmp_path / "out", part=(0, 2)) as writer:
        with pytest.raises(ss.CommitError, match="at work"):
            ss.Writer(tmp_path / "out", part=(0, 2))
        with ss.Writer(tmp_path / "out", part=(1, 2)):  # another part is welcome
            pass
        with pytest.raises(ss.CommitError, match="at work"):
            ss.commit(tmp_path / "out")
        writer.write({"txt": "a"})
    assert ss.commit(tmp_path / "out").samples == 1


def test_append_in_parts(dest: str) -> None:
    with ss.Writer(dest, **SMALL) as first:
        first.write({"__key__": "first", "txt": "a"})
    for rank in (1, 0):
        write(dest, rank, 2, append=True)
    ss.commit(dest)
    assert keys(dest) == ["first", *(f"{rank}/{number}" for rank in range(2) for number in range(60))]
    assert ss.commit(dest).samples == 121


def test_tokens_of_parts_have_one_dtype(dest: str) -> None:
    import numpy as np

    for rank, dtype in enumerate((np.uint16, np.int64)):
        with ss.Writer(dest, part=(rank, 2), tokens=True) as writer:
            writer.write(np.arange(5, dtype=dtype))
    with pytest.raises(ss.OptionError, match="part 0 are uint16, those of part 1 are uint32"):
        ss.commit(dest)
    with ss.Writer(dest, part=(1, 2), tokens=True) as writer:
        writer.write(np.arange(5, dtype=np.uint16))
    assert ss.commit(dest).tokens == 10


def test_rejects_of_all_parts_are_listed(dest: str) -> None:
    for rank in range(2):
        with ss.Writer(dest, part=(rank, 2), on_error="skip") as writer:
            writer.write({"txt": "a"})
            writer.write({"txt": None})
    manifest = ss.commit(dest)
    assert manifest.provenance["rejected"] == 2
    assert len(everything(dest)["rejects.jsonl"].splitlines()) == 2
    assert keys(dest) == ["000000-000000000000", "000001-000000000000"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: store.delete("shard-000001-1.tar.zst"), "part 1"),
        (lambda store: store.write("shard-000001.tar.zst", b"other"), "part 1"),
        (lambda store: store.write("shard-000001.index", store.read("shard-000000.index")), "part 1"),
    ],
)
def test_a_shard_that_is_not_that_of_its_part_is_refused(
    dest: str, damage: Callable[[Store], None], message: str
) -> None:
    for rank in range(2):
        write(dest, rank, 2, count=200)
    damage(Store.open(dest))
    with pytest.raises(ss.CommitError, match=f"{message} again"):
        ss.commit(dest)
    write(dest, 1, 2, count=200)
    assert ss.commit(dest).samples == 400


def test_a_damaged_receipt_is_named(dest: str) -> None:
    write(dest, 0, 1)
    Store.open(dest).write(".pack-part-000000.json", b"{")
    with pytest.raises(ss.CorruptionError, match="write part 0 again"):
        ss.commit(dest)


def test_a_commit_that_was_killed_behind_the_manifest_is_ended_by_the_next(dest: str) -> None:
    write(dest, 0, 1)
    store = Store.open(dest)
    before = everything(dest)
    manifest = ss.commit(dest)
    for name in (".pack-claim.json", ".pack-part-000000.json"):
        store.write(name, before[name])
    assert ss.commit(dest) == manifest
    assert not [name for name in everything(dest) if name.startswith(".")]


RANK = """
import os, sys
import shardstream as ss
rank, dest = int(sys.argv[2]), sys.argv[1]
options = {"shard_size": "4KiB", "frame_size": "1KiB", "resume": len(sys.argv) > 4}
with ss.Writer(dest, part=(rank, 3), **options) as writer:
    for number in range(60):
        writer.write({"__key__": f"{rank}/{number}", "txt": f"{rank} {number} " * (number % 30)})
        if number == 55 and sys.argv[3] == "kill":
            os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("resume", [[], ["resume"]])
def test_ranks_are_processes_that_may_be_killed_and_started_again(tmp_path: Path, resume: list[str]) -> None:
    def start(rank: int, what: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path / "out"), str(rank), what, *resume])

    first = [start(rank, "kill" if rank == 1 else "write") for rank in range(3)]
    assert [one.wait() for one in first] == [0, -9, 0]
    with pytest.raises(ss.CommitError, match="missing: 1"):
        ss.commit(tmp_path / "out")
    assert start(1, "write").wait() == 0
    ss.commit(tmp_path / "out")
    for rank in range(3):
        write(tmp_path / "whole", rank, 3)
    ss.commit(tmp_path / "whole")
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
