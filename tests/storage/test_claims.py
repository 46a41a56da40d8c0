"""Claims: one fetch of a block at a time, over threads and processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from shardstream.storage.disk import Disk
from tests.storage.disks import FLUSH, block


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
