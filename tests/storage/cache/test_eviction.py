"""Eviction: the SSD tier stays within its limit, over processes, and drops what is needed latest."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np

from shardstream.storage.cache.disk import DiskTier
from tests.storage.disks import GROUP, block, files, put

FOLDERS = 8  # units that folders and a ledger take, those of one group


def test_it_stays_within_its_limit_and_what_is_needed_latest_goes_first(tmp_path: Path) -> None:
    disk, owner = DiskTier.open(tmp_path, (50 + FOLDERS) * 4096), threading.Event()
    disk.next_uses.set(owner, lambda group: np.arange(100.0) if group == GROUP else None)
    order = list(range(100))
    random.Random(0).shuffle(order)
    for number in order:
        put(disk, block(number))
        assert len(files(tmp_path)) * 4096 <= disk.used <= disk.limit
    kept = sorted(int(path.name) for path in files(tmp_path))
    assert kept[:45] == list(range(45))


def test_without_knowledge_a_scan_still_hits(tmp_path: Path) -> None:
    disk = DiskTier.open(tmp_path, (50 + FOLDERS) * 4096)
    hits = 0
    for number in list(range(100)) * 4:
        one, data = block(number)
        if disk.get(one) is None:
            put(disk, (one, data))
        else:
            hits += 1
    assert hits > 30  # the least recently used first would give none at all


def _filler(folder: str, number: int) -> None:
    disk = DiskTier.open(folder, (40 + FOLDERS + 4) * 4096)
    for step in range(300):
        disk.put(*block(number * 1000 + step % 90))
        if step % 7 == 0:
            disk.get(block(random.randrange(4) * 1000 + step % 90)[0])
    assert disk.flush(60)


@contextlib.contextmanager
def _stopped(children: list[SpawnProcess]) -> Iterator[None]:
    for child in children:
        if child.is_alive():
            os.kill(child.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    yield
    for child in children:
        if child.is_alive():
            os.kill(child.pid, signal.SIGCONT)


def test_many_processes_together_stay_within_the_limit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_filler, args=(str(tmp_path), number)) for number in range(4)]
    for child in children:
        child.start()
    most = 0
    while any(child.is_alive() for child in children):
        with _stopped(children):  # a listing of files that come and go could count too many
            most = max(most, len(files(tmp_path)))
    assert [child.exitcode for child in children] == [0] * 4
    assert 30 <= most <= 40 + len(children)
    # The next one takes over what the dead have counted.
    disk = DiskTier.open(tmp_path, (40 + FOLDERS) * 4096)
    assert disk.used == len(files(tmp_path)) * 4096
    assert len(list(Path(disk.path, "ledgers").iterdir())) == 1
    assert disk.info(check=True).damaged == []


def test_a_ledger_that_drifted_is_set_right(tmp_path: Path) -> None:
    disk = DiskTier.open(tmp_path, (20 + FOLDERS) * 4096)
    put(disk, *(block(number) for number in range(20)))
    for path in files(tmp_path):
        path.unlink()  # by hand: nobody counted it
    assert disk.used == 20 * 4096
    put(disk, *(block(number) for number in range(20, 40)))
    assert len(files(tmp_path)) >= 18
    assert len(files(tmp_path)) * 4096 <= disk.used <= disk.limit
