"""The SSD tier: exact or absent, bounded over processes, safe against other users and bad disks."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from shardstream.errors import StorageError
from shardstream.storage.blocks import Block
from shardstream.storage.disk import Disk, cost

GROUP = "0123456789abcdef" * 2
FLUSH = 30.0


def block(number: int, size: int = 100, group: str = GROUP) -> tuple[Block, bytes]:
    return Block(group, str(number), size), random.Random(number).randbytes(size)


def file_of(disk: Disk, one: Block) -> Path:
    return Path(disk.path, "blocks", one.group, one.name)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("blocks/*/*"))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk.open(tmp_path, 1 << 20)


def put(disk: Disk, *pairs: tuple[Block, bytes]) -> None:
    for one, data in pairs:
        disk.put(one, data)
    assert disk.flush(FLUSH)


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 300_000])
@pytest.mark.parametrize("mapped", [False, True])
def test_what_was_put_comes_back(disk: Disk, size: int, mapped: bool) -> None:
    one, data = block(1, size)
    assert disk.get(one) is None
    put(disk, (one, data))
    assert disk.has(one)
    assert disk.get(one, mapped) == data
    assert disk.used == cost(size)
    assert disk.info(check=True).damaged == []


def test_directories_and_files_are_for_their_owner_alone(disk: Disk) -> None:
    put(disk, block(1))
    for path in [Path(disk.path), *Path(disk.path).rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("where", [0, 50, 99, 100, 107])
def test_a_flipped_bit_drops_the_block(disk: Disk, where: int) -> None:
    one, data = block(1)
    put(disk, (one, data))
    path = file_of(disk, one)
    damaged = bytearray(path.read_bytes())
    damaged[where] ^= 1
    path.write_bytes(damaged)
    assert disk.info(check=True).damaged == [f"{GROUP}/1"]
    assert disk.get(one) is None
    assert not path.exists()
    assert disk.used == 0
    put(disk, (one, data))
    assert disk.get(one) == data


def test_a_block_in_the_place_of_another_is_not_taken_for_it(disk: Disk) -> None:
    pairs = [block(1), block(2)]
    put(disk, *pairs)
    os.replace(file_of(disk, pairs[0][0]), file_of(disk, pairs[1][0]))
    assert disk.get(pairs[1][0]) is None


@pytest.mark.parametrize("size", [0, 7, 99, 109])
def test_a_block_of_the_wrong_length_is_dropped(disk: Disk, size: int) -> None:
    one, data = block(1)
    put(disk, (one, data))
    file_of(disk, one).write_bytes((data + bytes(9))[:size])
    assert disk.get(one) is None
    assert not file_of(disk, one).exists()


def test_it_stays_within_its_limit_and_what_is_needed_latest_goes_first(tmp_path: Path) -> None:
    disk, owner = Disk.open(tmp_path, 50 * 4096), threading.Event()
    disk.schedule.set(owner, lambda group: np.arange(100.0) if group == GROUP else None)
    order = list(range(100))
    random.Random(0).shuffle(order)
    for number in order:
        put(disk, block(number))
        assert len(files(tmp_path)) * 4096 <= disk.used <= disk.limit
    kept = sorted(int(path.name) for path in files(tmp_path))
    assert kept[:45] == list(range(45))


def test_without_knowledge_a_scan_still_hits(tmp_path: Path) -> None:
    disk = Disk.open(tmp_path, 50 * 4096)
    hits = 0
    for number in list(range(100)) * 4:
        one, data = block(number)
        if disk.get(one) is None:
            put(disk, (one, data))
        else:
            hits += 1
    assert hits > 30  # the least recently used first would give none at all


def test_other_files_are_neither_read_nor_deleted(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [block(number) for number in range(4)]
    put(disk, *pairs)
    folder = Path(disk.path, "blocks", GROUP)
    outside = Path(disk.path).parent / "precious"
    outside.write_bytes((folder / "0").read_bytes())
    (folder / "0").unlink()
    (folder / "0").symlink_to(outside)
    os.chown(folder / "1", 12345, 12345)
    (folder / "2").unlink()
    os.mkfifo(folder / "2")
    (folder / "notes.txt").write_text("mine")
    Path(disk.path, "blocks", "f" * 32).symlink_to(folder)
    with caplog.at_level(logging.WARNING):
        for one, _ in pairs[:3]:
            assert disk.get(one) is None
        assert disk.get(Block("f" * 32, "3", 100)) is None
    assert len(caplog.records) == 1
    assert disk.get(pairs[3][0]) == pairs[3][1]
    assert disk.info().foreign == 5
    assert disk.clear().blocks == 1
    assert outside.exists()
    assert {path.name for path in folder.iterdir()} == {"0", "1", "2", "notes.txt"}


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    planted = Path(Disk.path_in(str(tmp_path)))
    planted.mkdir(mode=0o700)
    os.chown(planted, 12345, 12345)
    with pytest.raises(StorageError, match="somebody else"):
        Disk.open(tmp_path)
    planted.rmdir()
    planted.symlink_to("/tmp")
    with pytest.raises(StorageError, match="no cache here"):
        Disk.open(tmp_path)
    planted.unlink()
    planted.mkdir(mode=0o777)
    planted.chmod(0o777)
    with pytest.raises(StorageError, match="others have access"):
        Disk.open(tmp_path)


def test_a_directory_that_vanishes_is_one_warning(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    put(disk, block(1))
    shutil.rmtree(disk.path)
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            put(disk, block(number))
            assert disk.get(block(number)[0]) is None
    assert [record.name for record in caplog.records] == ["shardstream.cache"]


def test_a_claim_excludes_threads_and_processes_and_dies_with_its_process(disk: Disk, tmp_path: Path) -> None:
    one = block(1)[0]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_claimer, args=(str(tmp_path), there))
    child.start()
    assert here.recv() is True
    assert disk.claim(one) is None
    other = disk.claim(block(2)[0])
    assert other is not None
    child.kill()
    child.join()
    claim = disk.claim(one)
    assert claim is not None
    assert disk.claim(one) is None
    claim.release()
    claim = disk.claim(one)
    assert claim is not None
    disk.put(one, block(1)[1], claim)  # which releases it
    assert disk.flush(FLUSH)
    assert disk.claim(one) is not None


def _claimer(folder: str, pipe: object) -> None:
    claim = Disk.open(folder).claim(block(1)[0])
    pipe.send(claim is not None)
    pipe.recv()


def _filler(folder: str, number: int) -> None:
    disk = Disk.open(folder, 40 * 4096)
    for step in range(300):
        disk.put(*block(number * 1000 + step % 90))
        if step % 7 == 0:
            disk.get(block(random.randrange(4) * 1000 + step % 90)[0])
    assert disk.flush(60)


def test_many_processes_together_stay_within_the_limit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_filler, args=(str(tmp_path), number)) for number in range(4)]
    for child in children:
        child.start()
    most = 0
    while any(child.is_alive() for child in children):
        most = max(most, len(files(tmp_path)))
    assert [child.exitcode for child in children] == [0] * 4
    assert 30 <= most <= 40 + len(children)
    # The next one takes over what the dead have counted.
    disk = Disk.open(tmp_path, 40 * 4096)
    assert disk.used == len(files(tmp_path)) * 4096
    assert len(list(Path(disk.path, "ledgers").iterdir())) == 1
    assert disk.info(check=True).damaged == []


def test_a_ledger_that_drifted_is_set_right(tmp_path: Path) -> None:
    disk = Disk.open(tmp_path, 20 * 4096)
    put(disk, *(block(number) for number in range(20)))
    for path in files(tmp_path):
        path.unlink()  # by hand: nobody counted it
    assert disk.used == 20 * 4096
    put(disk, *(block(number) for number in range(20, 40)))
    assert len(files(tmp_path)) >= 18
    assert len(files(tmp_path)) * 4096 <= disk.used <= disk.limit


def test_clearing_leaves_an_empty_cache_that_works(disk: Disk) -> None:
    put(disk, *(block(number) for number in range(5)))
    assert disk.clear().blocks == 5
    assert (disk.used, disk.info().blocks, disk.info().groups) == (0, 0, 0)
    put(disk, block(7))
    assert disk.get(block(7)[0]) == block(7)[1]
