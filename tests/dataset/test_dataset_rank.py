"""Processes that a rank starts to read for it read as that rank, whatever they know themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader

import shardstream as ss
from shardstream.errors import OptionError
from tests.distributed.training import everything, name, pack

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), "samples", documents=40)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a library of this process alone say which rank it is, as Horovod does."""
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)

    def say(rank: int, size: int) -> None:
        library = SimpleNamespace(is_initialized=lambda: True, rank=lambda: rank, size=lambda: size)
        monkeypatch.setitem(sys.modules, "horovod.torch", library)

    return say


def test_auto_is_asked_until_it_is_used(packed: Path, ranks: Any) -> None:
    ds = ss.StreamingDataset(packed)
    loader = ss.StreamingLoader(ds, 4)
    assert (ds.topology.dp_rank, ds.topology.dp_size) == (0, 1)
    ranks(1, 2)
    assert (ds.topology.dp_rank, ds.topology.dp_size) == (1, 2)
    assert len(loader) == 5
    assert [name(item) for item in ds] == everything(packed)[1::2]
    ranks(0, 4)
    for use in (lambda: len(ds), lambda: iter(ds), lambda: len(loader), lambda: iter(loader)):
        with pytest.raises(OptionError, match="used as rank 1 of 2, and now this process is rank 0 of 4"):
            use()
    assert ds.state_dict()["epoch"] == 1  # which says nothing of ranks once the lanes are known
    given = ss.StreamingDataset(packed, topology=ss.Topology(1, 2))
    assert len(given) == 20


def test_numbers_are_of_all_samples_and_the_length_is_of_the_rank(packed: Path) -> None:
    ds = ss.StreamingDataset(packed, topology=ss.Topology(1, 2))
    assert len(ds) == 20
    assert [ds[number]["__key__"] for number in range(ds.total)] == everything(packed)


def test_a_batch_too_large_for_the_ranks_is_told_once_they_are_known(packed: Path, ranks: Any) -> None:
    loader = ss.StreamingLoader(ss.StreamingDataset(packed), 10)
    ranks(1, 8)
    with pytest.warns(UserWarning, match="an epoch has no batch"):
        assert list(loader) == []


def test_a_running_iteration_does_not_ask_again(packed: Path, ranks: Any) -> None:
    ranks(1, 2)
    loader = ss.StreamingLoader(ss.StreamingDataset(packed), 4, last="pad")
    iterator = iter(loader)
    found = [next(iterator)]
    ranks(0, 1)  # as after destroy_process_group
    found += iterator
    assert len(found) == 5


@pytest.mark.parametrize("kind", ["dataset", "mixture"])
def test_the_process_of_the_engine_reads_for_the_rank(packed: Path, ranks: Any, kind: str) -> None:
    ds: Any = ss.StreamingDataset(packed, shuffle=True)
    if kind == "mixture":
        ds = ss.Mixture([(ds, 1)])
    beside = ss.StreamingLoader(ds, 5, engine="process")
    ranks(1, 2)
    wanted = [batch["__key__"] for batch in ss.StreamingLoader(ds, 5)]
    assert [batch["__key__"] for batch in beside] == wanted
    assert len(wanted) == 4


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(one, marks=pytest.mark.long) for one in ("spawn", "forkserver"))]
)
def test_workers_read_for_the_rank(packed: Path, ranks: Any, method: str) -> None:
    ds = ss.StreamingDataset(packed)
    ranks(1, 2)
    loader = DataLoader(ds, batch_size=None, num_workers=2, multiprocessing_context=method)
    for _ in range(2):
        assert [name(item) for item in loader] == everything(packed)[1::2]
