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
from tests.distributed.training import dataset, name, pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), "samples", documents=30)


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
    sender.send([[name(item) for item in items] for _ in range(2)])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_that_inherit_a_dataset_do_not_share_epochs(packed: Path, workers: int) -> None:
    ds = dataset(packed, transform=_key)
    orders = [[name(item) for item in one] for one in [dataset(packed)] for _ in range(3)]
    loader = DataLoader(ds, batch_size=None, num_workers=1)
    assert [name(item) for item in loader] == orders.pop(0)
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        receiver, sender = context.Pipe(duplex=False)
        rank = context.Process(target=_rank, args=(ds, sender, workers))
        rank.start()
        try:
            assert receiver.poll(60)
            assert receiver.recv() == orders
        finally:
            rank.join(200)
            rank.kill()
    assert [name(item) for item in ds] == orders[0]


def _key(sample: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": sample["__key__"]}


def test_a_forked_process_opens_the_dataset_anew(packed: Path) -> None:
    ds = ss.StreamingDataset(packed)
    reader, source = ds._contents.reader, ds._contents.source
    assert ds._contents.reader is reader
    assert ds._contents.source is source
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        mine = ds._contents
        same = mine.reader is reader or mine.source is source or mine.source.reader is not mine.reader
        os.write(write, b"same" if same else b"anew")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 4) == b"anew"
    os.close(read)
    os.close(write)
