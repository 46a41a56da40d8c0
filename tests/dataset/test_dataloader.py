"""A dataset under torch's DataLoader and torchdata's StatefulDataLoader: each item once, epochs in turn."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import shardstream as ss
from shardstream.errors import StateError
from tests.distributed.training import dataset, everything, name, names, pack

pytestmark = [
    # Three workers on two cores, which is what we want to see work.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture(scope="module", params=["samples", "tokens"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), request.param, documents=60)


def epoch(loader: Any, batch_size: int | None) -> list[str]:
    """The names of what a loader delivers, in its order."""
    if batch_size is None:
        return [name(item) for item in loader]
    return [found for batch in loader for found in names(batch)]


def fields(ds: Any) -> Any:
    """Only what torch's default collate can put together."""
    return ds if isinstance(ds, ss.TokenDataset) else _keys(ds)


def _keys(ds: Any) -> Any:
    ds.transform = only_key
    return ds


def only_key(sample: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": sample["__key__"]}


def cases() -> list[Any]:
    """Workers, how they are started, batch size, persistent; what takes seconds once each."""
    found: list[Any] = [(0, None, size, False) for size in (None, 4)]
    slow = [(2, "spawn", None, True), (2, "forkserver", 4, False)]
    for case in itertools.product((1, 2, 3), ("fork", "spawn", "forkserver"), (None, 4), (False, True)):
        quick = case[1] == "fork" or case in slow
        found.append(pytest.param(*case, marks=() if quick else pytest.mark.long))
    return found


@pytest.mark.parametrize(("workers", "method", "batch_size", "persistent"), cases())
def test_each_item_once_and_the_epochs_go_on_by_themselves(
    packed: Path, workers: int, method: str | None, batch_size: int | None, persistent: bool
) -> None:
    wanted = everything(packed)
    orders = [[name(item) for item in one] for one in itertools.repeat(dataset(packed), 3)]
    ds = fields(dataset(packed))
    options = {"multiprocessing_context": method, "persistent_workers": persistent}
    loader = DataLoader(ds, batch_size=batch_size, num_workers=workers, **options)
    # Starting workers costs little where they are forked or stay.
    count = 3 if workers == 0 or persistent or method == "fork" else 2
    found = [epoch(loader, batch_size) for _ in range(count)]
    assert all(sorted(one) == wanted for one in found)
    if batch_size is None or workers < 2:
        assert found == orders[:count]
    assert len({tuple(one) for one in found}) == count
    assert len(loader) == (len(ds) if batch_size is None else -(-len(ds) // batch_size))
    if count == 3:
        # Chosen by hand, also in workers that already run.
        ds.set_epoch(1)
        assert epoch(loader, batch_size) == found[1]
        assert epoch(loader, batch_size) == found[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_ranks_together_deliver_each_item_once(packed: Path, workers: int) -> None:
    found: list[str] = []
    for rank in range(3):
        ds = fields(dataset(packed, topology=ss.Topology(rank, 3)))
        mine = epoch(DataLoader(ds, batch_size=4, num_workers=workers), 4)
        assert len(mine) == len(ds)
        found += mine
    assert sorted(found) == everything(packed)


def test_a_resumed_place_is_where_the_workers_start(packed: Path) -> None:
    one = dataset(packed)
    first = [name(item) for item in itertools.islice(one, 13)]
    two = fields(dataset(packed))
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    loader = DataLoader(two, batch_size=None, num_workers=2, persistent_workers=True)
    whole = [name(item) for item in dataset(packed)]
    assert first + epoch(loader, None) == whole
    assert sorted(epoch(loader, None)) == sorted(whole)


def test_an_epoch_left_half_way_is_followed_by_the_next(packed: Path) -> None:
    ds = fields(dataset(packed))
    orders = [[name(item) for item in one] for one in itertools.repeat(dataset(packed), 2)]
    for persistent in (False, True):
        ds.set_epoch(0)
        loader = DataLoader(ds, batch_size=None, num_workers=2, persistent_workers=persistent)
        assert [name(item) for item in itertools.islice(loader, 5)] == orders[0][:5]
        assert epoch(loader, None) == orders[1]


def test_equal_seeds_do_not_repeat_an_epoch(packed: Path) -> None:
    ds = fields(dataset(packed))
    found = []
    for _ in range(3):
        torch.manual_seed(7)
        found.append(tuple(epoch(DataLoader(ds, batch_size=None, num_workers=2), None)))
    assert len(set(found)) == 3


def test_two_loaders_of_one_dataset_at_the_same_time(packed: Path) -> None:
    ds = fields(dataset(packed))
    pair = zip(*(DataLoader(ds, batch_size=None, num_workers=2) for _ in range(2)), strict=True)
    left, right = zip(*pair, strict=True)
    assert sorted(map(name, left)) == sorted(map(name, right)) == everything(packed)


def test_a_state_while_workers_deliver_is_refused(packed: Path) -> None:
    ds = fields(dataset(packed))
    list(itertools.islice(DataLoader(ds, batch_size=None, num_workers=1), 3))
    with pytest.raises(StateError, match="StatefulDataLoader"):
        ds.state_dict()
    ds.set_epoch(5)
    assert (ds.state_dict()["epoch"], ds.state_dict()["position"]) == (5, 0)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_stateful_dataloader_resumes_anywhere(
    packed: Path, workers: int, batch_size: int | None, persistent: bool
) -> None:
    wanted = everything(packed)

    def loader() -> Any:
        return StatefulDataLoader(
            fields(dataset(packed)),
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=persistent,
        )

    def step(batch: Any) -> list[str]:
        return [name(batch)] if batch_size is None else names(batch)

    whole = loader()
    epochs = [[step(batch) for batch in whole] for _ in range(2)]
    assert [sorted(itertools.chain(*one)) for one in epochs] == [wanted] * 2
    assert epochs[0] != epochs[1]
    last = len(epochs[0])
    for stop in (1, 5, last - 1, last):
        one = loader()
        before = [step(batch) for batch in itertools.islice(one, stop)]
        two = loader()
        two.load_state_dict(json.loads(json.dumps(one.state_dict())))
        after = [step(batch) for batch in two]
        assert before + after == epochs[0], stop
        # The epoch that was resumed is followed by the next, whole.
        assert [step(batch) for batch in two] == epochs[1], stop
        del one, two


def test_stateful_dataloader_between_epochs(packed: Path) -> None:
    for workers in (0, 2):
        one = StatefulDataLoader(fields(dataset(packed)), batch_size=4, num_workers=workers)
        epochs = [epoch(one, 4) for _ in range(1)]
        state = one.state_dict()
        epochs.append(epoch(one, 4))
        two = StatefulDataLoader(fields(dataset(packed)), batch_size=4, num_workers=workers)
        two.load_state_dict(state)
        assert epoch(two, 4) == epochs[1]


def test_the_state_of_a_worker_is_for_that_worker(packed: Path) -> None:
    loader = StatefulDataLoader(fields(dataset(packed)), batch_size=4, num_workers=2)
    next(iter(loader))
    snapshot = loader.state_dict()["_snapshot"]["_worker_snapshots"]["worker_1"]
    state = snapshot["dataset_state"]
    assert (state["worker"], state["workers"]) == (1, 2)
    for target in (dataset(packed), ss.StreamingLoader(dataset(packed), 4)):
        with pytest.raises(StateError, match="workers is 2 in the state and None here"):
            target.load_state_dict(state)
