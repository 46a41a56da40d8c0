"""Copies of a dataset: those of workers share its epochs, all others go their own way."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import shardstream as ss
from shardstream.dataset.workers import Log, Worker
from tests.distributed.training import dataset, name, pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), "samples", documents=30)


def test_workers_agree_in_whatever_order_they_begin() -> None:
    log = Log()
    first = [Worker(number, 3, 11) for number in range(3)]
    second = [Worker(number, 3, 12) for number in range(3)]
    log.choose(4, 40)
    assert [log.begin(first[number], None) for number in (2, 0)] == [(4, 40)] * 2
    # Another DataLoader begins before the last worker of the first has.
    assert log.begin(second[1], None) == (5, 0)
    assert log.begin(first[1], None) == (4, 40)
    assert [log.begin(second[number], None) for number in (0, 2)] == [(5, 0)] * 2
    assert log.busy()
    # Workers that stay, or new ones with the same seed.
    assert [log.begin(worker, None) for worker in first] == [(6, 0)] * 3
    log.choose(2, 0)
    assert not log.busy()
    assert [log.begin(worker, None) for worker in second] == [(2, 0)] * 3
    # Workers that were told where to start, by their own states, decide what comes next.
    assert [log.begin(worker, (7, 10 + worker.number)) for worker in first] == [(7, 10), (7, 11), (7, 12)]
    assert log.following() == (8, 0)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda ds: pickle.loads(pickle.dumps(ds))])
def test_a_copy_starts_where_the_original_is_and_goes_its_own_way(packed: Path, how: Any) -> None:
    one = dataset(packed)
    orders = [[name(item) for item in dataset_] for dataset_ in [dataset(packed)] for _ in range(3)]
    assert [name(item) for item in one] == orders[0]
    two = how(one)
    assert [name(item) for item in two] == orders[1]
    assert [name(item) for item in two] == orders[2]
    assert [name(item) for item in one] == orders[1]


def _rank(ds: Any, sender: Any, workers: int) -> None:
    items = ds if workers == 0 else DataLoader(ds, batch_size=None, num_workers=workers)
    ds.set_epoch(0)
    sender.send([[name(item) for item in items] for _ in range(2)])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_that_inherit_a_dataset_do_not_share_epochs(packed: Path, workers: int) -> None:
    ds = dataset(packed, transform=_key)
    orders = [[name(item) for item in one] for one in [dataset(packed)] for _ in range(2)]
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        receiver, sender = context.Pipe(duplex=False)
        rank = context.Process(target=_rank, args=(ds, sender, workers))
        rank.start()
        try:
            assert receiver.poll(60)
            assert receiver.recv() == orders
        finally:
            rank.join(60)
            rank.kill()
    assert ds.state_dict()["epoch"] == 0


def _key(sample: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": sample["__key__"]}


def test_a_forked_process_opens_the_dataset_anew(packed: Path) -> None:
    ds = ss.StreamingDataset(packed)
    reader, source = ds.reader, ds.source
    assert ds.reader is reader
    assert ds.source is source
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        same = ds.reader is reader or ds.source is source or ds.source.reader is not ds.reader
        os.write(write, b"same" if same else b"anew")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 4) == b"anew"
    os.close(read)
    os.close(write)
