"""Fetch locks: one fetch of a block at a time, over threads and processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from shardstream.storage.cache.disk import DiskTier
from tests.storage.disks import FLUSH, block


def test_a_lock_excludes_threads_and_processes_and_dies_with_its_process(
    disk: DiskTier, tmp_path: Path
) -> None:
    one = block(1)[0]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_locker, args=(str(tmp_path), there))
    child.start()
    assert here.recv() is True
    assert disk.lock(one) is None
    other = disk.lock(block(2)[0])
    assert other is not None
    child.kill()
    child.join()
    lock = disk.lock(one)
    assert lock is not None
    assert disk.lock(one) is None
    lock.release()
    lock = disk.lock(one)
    assert lock is not None
    disk.put(one, block(1)[1], lock)  # which releases it
    assert disk.flush(FLUSH)
    assert disk.lock(one) is not None


def _locker(folder: str, pipe: object) -> None:
    lock = DiskTier.open(folder).lock(block(1)[0])
    pipe.send(lock is not None)
    pipe.recv()


def test_a_lock_that_is_released_twice_leaves_the_next_one_alone(disk: DiskTier) -> None:
    one = block(1)[0]
    first = disk.lock(one)
    assert first is not None
    first.release()
    second = disk.lock(one)
    first.release()
    assert second is not None
    assert disk.lock(one) is None
