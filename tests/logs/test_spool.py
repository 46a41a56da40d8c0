"""Spool and segments: full disks, other people's files, and what processes leave."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.logs.rows import decode, encode
from shardstream.logs.segments import Segment
from shardstream.logs.spool import MOST, Spool, folders_for
from tests.logs.conftest import files


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As if the disk were full: a write beyond this size of a file fails, after what fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_row_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    segment = Segment.create(str(tmp_path), 0)
    segment.append(b"a" * 99 + b"\n")
    with files_of_at_most(150), pytest.raises(OSError, match=r"No space|too large"):
        segment.append(b"b" * 99 + b"\n")
    assert segment.read() == b"a" * 99 + b"\n"
    segment.append(b"c\n")
    assert segment.read().endswith(b"a\nc\n")
    segment.delete()


def test_a_disk_that_fills_up_seals_the_segment_and_loses_no_row(tmp_path: Path) -> None:
    spool = Spool(folders_for("/log", str(tmp_path)), 0, 1 << 20, 1 << 22)
    with files_of_at_most(1000):
        for number in range(100):
            spool.append(b"%099d\n" % number)
    assert spool.dropped == 0
    spool.seal()
    found = b"".join(segment.read() for segment in spool.waiting())
    assert found == b"".join(b"%099d\n" % number for number in range(100))
    assert spool.trouble
    spool.close()


def test_a_disk_that_takes_nothing_drops_rows_and_says_so_later(tmp_path: Path) -> None:
    spool = Spool(folders_for("/log", str(tmp_path)), 0, 1 << 20, 1 << 22)
    with files_of_at_most(50):
        spool.append(b"x" * 99 + b"\n")
        assert spool.dropped == spool.unsaid == 1
        spool.append(b"x" * 99 + b"\n")  # within a second nothing is tried
    spool._again = 0.0
    spool.append(b"y\n")
    spool.seal()
    [segment] = spool.waiting()
    said, row = segment.read().splitlines()
    assert b'"rows":2,"total":2' in said
    assert row == b"y"
    spool.close()


@given(st.binary(max_size=300))
def test_only_whole_rows_are_adopted(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("spool")
    name = f"rank-2.{1:020d}-{'0' * 16}.jsonl"
    (folder / name).write_bytes(data)
    segment = Segment.adopt(str(folder), name)
    assert segment is not None
    whole = data[: data.rfind(b"\n") + 1]
    assert segment.rank == 2
    assert segment.cut == len(data) - len(whole)
    found = segment.read()
    assert found.startswith(whole)
    assert found.count(b"\n") == whole.count(b"\n") + (segment.cut > 0) == segment.rows
    # Whoever adopts it next finds the same.
    segment.close()
    again = Segment.adopt(str(folder), name)
    assert again is not None
    assert (again.read(), again.cut) == (found, 0)
    again.delete()
    assert files(folder) == []


def test_one_process_adopts_a_segment(tmp_path: Path) -> None:
    segment = Segment.create(str(tmp_path), 0)
    segment.append(b"1\n")
    name = os.path.basename(segment.path)
    assert Segment.adopt(str(tmp_path), name) is None
    segment.close()
    first = Segment.adopt(str(tmp_path), name)
    assert first is not None
    assert Segment.adopt(str(tmp_path), name) is None
    first.delete()
    assert Segment.adopt(str(tmp_path), name) is None


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("secret\n")
    folder = tmp_path / "spool"
    folder.mkdir()
    name = f"rank-0.{1:020d}-{'0' * 16}.jsonl"
    (folder / name).symlink_to(target)
    os.mkfifo(folder / name.replace("rank-0", "rank-1"))
    (folder / "notes.txt").write_text("x")
    for each in os.listdir(folder):
        found = Segment.adopt(str(folder), each)
        assert found is None or found.rows == 0
    assert target.read_text() == "secret\n"


def test_what_a_kill_left_while_a_segment_was_made_is_deleted(tmp_path: Path) -> None:
    new = tmp_path / f".new-rank-0.{1:020d}-{'0' * 16}.jsonl"
    new.write_text("")
    assert Segment.adopt(str(tmp_path), new.name) is None
    assert new.exists()  # it may be about to get its name
    os.utime(new, (0, 0))
    with new.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Segment.adopt(str(tmp_path), new.name)
        assert new.exists()
    Segment.adopt(str(tmp_path), new.name)
    assert not new.exists()


def test_a_folder_that_somebody_empties_loses_nothing(tmp_path: Path) -> None:
    spool = Spool(folders_for("/log", str(tmp_path)), 0, 1 << 20, 1 << 22)
    spool.append(b"1\n")
    [path] = files(tmp_path)
    path.unlink()
    path.parent.rmdir()
    spool.append(b"2\n")
    spool.seal()
    spool.append(b"3\n")
    spool.seal()
    first, second = spool.waiting()
    first.aim(7)
    assert (first.read(), second.read()) == (b"1\n2\n", b"3\n")
    spool.done(first)
    spool.done(second)
    spool.close()


def test_a_file_system_without_locks_is_no_place_for_a_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks"):
        Segment.create(str(tmp_path), 0)
    assert files(tmp_path) == []


def test_small_segments_that_wait_are_bounded_and_lose_no_row(tmp_path: Path) -> None:
    spool = Spool(folders_for("/log", str(tmp_path)), 0, 1 << 10, 64 << 20)
    line = b"x" * 999 + b"\n"
    for _ in range(5000):
        spool.append(line)
        spool.append(line)
    assert spool.dropped == 0
    assert len(files(tmp_path)) <= MOST
    spool.seal()
    assert sum(segment.rows for segment in spool.waiting()) == 10_000
    spool.close()


def test_no_free_descriptor_is_not_a_full_disk_and_drops_no_older_row(tmp_path: Path) -> None:
    spool = Spool(folders_for("/log", str(tmp_path)), 0, 1 << 20, 1 << 22)
    spool.append(b"1\n")
    spool.seal()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        spool.append(b"2\n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in spool.trouble
    spool._again = 0.0
    spool.append(b"3\n")
    spool.seal()
    first, second = spool.waiting()
    assert first.read() == b"1\n"
    said, row = second.read().splitlines()
    assert b'"rows":1' in said
    assert b"Too many open files" in said
    assert row == b"3"
    spool.close()


def test_a_slash_at_the_end_makes_no_other_spool() -> None:
    assert folders_for("s3://b/run/", "/x") == folders_for("s3://b/run", "/x")
    assert folders_for("s3://b/run/", "/x") != folders_for("s3://b/ru", "/x")


def test_a_row_whose_count_was_interrupted_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(folders_for("/log", str(tmp_path)), 0, 1 << 20, 1 << 22)
    write = os.write

    def interrupted(descriptor: int, line: bytes) -> int:
        write(descriptor, line)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            spool.append(b"1\n")
    spool.seal()
    [segment] = spool.waiting()
    assert (segment.read(), segment.rows) == (b"1\n", 1)
    spool.close()
    assert spool.left == 1


def test_a_clock_that_is_set_back_leaves_rows_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool([str(tmp_path / "spool")], 0, 1 << 10, 1 << 20)
    now = iter(range(2_000_000_000_000_000_000, 0, -1_000_000_000))
    monkeypatch.setattr("time.time_ns", lambda: next(now))
    for number in range(5):
        spool.append(encode({"n": number}))
        spool.seal()
    spool.close()
    other = Spool([str(tmp_path / "spool")], 0, 1 << 10, 1 << 20)
    other.adopt()
    assert [decode(segment.read())["n"] for segment in other.waiting()] == list(range(5))
    other.close()
