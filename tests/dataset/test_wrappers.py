"""What shares out a dataset that has shared itself out is refused; stand-ins of Accelerate's wrappers.

`tests/frameworks/test_accelerate.py` and `test_transformers.py` have the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

import shardstream as ss
from shardstream.errors import OptionError
from tests.distributed.training import pack

# What counts is where the code of a wrapper is from, as Python knows it, and its class.
SOURCE = """
class IterableDatasetShard(Base):
    def __init__(self, dataset, processes):
        self.dataset, self.num_processes = dataset, processes

    def set_epoch(self, epoch):
        self.dataset.set_epoch(epoch)

    def __iter__(self):
        for item in self.dataset:
            yield item


class State:
    pass


class DataLoaderDispatcher:
    def __init__(self, dataset, processes):
        self.base, self.state = DataLoader(dataset, batch_size=None), State()
        self.state.num_processes = processes

    def set_epoch(self, epoch):
        self.base.dataset.set_epoch(epoch)

    def __iter__(self):
        for batch in self.base:
            yield batch

"""


def wrapper(name: str, module: str = "accelerate.data_loader") -> Callable[..., Any]:
    """A class of a module of that name."""
    names: dict[str, Any] = {"__name__": module, "Base": IterableDataset, "DataLoader": DataLoader}
    exec(SOURCE, names)
    return names[name]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("wrappers"), "samples", documents=10)


def part(url: Path, rank: int = 0, ranks: int = 2) -> ss.StreamingDataset:
    return ss.StreamingDataset(url, topology=ss.Topology(rank, ranks))


WRAPPERS = [
    ("IterableDatasetShard", "accelerate.data_loader"),
    ("IterableDatasetShard", "transformers.trainer_pt_utils"),
    ("DataLoaderDispatcher", "accelerate.data_loader"),
]


@pytest.mark.parametrize(("name", "module"), WRAPPERS)
def test_a_part_is_not_shared_out_again(url: Path, name: str, module: str) -> None:
    wrapped = wrapper(name, module)(part(url, 1), 2)
    with pytest.raises(OptionError, match=f"rank 1 of 2, and {name} .*topology=ss.Topology"):
        next(iter(wrapped))
    with pytest.raises(OptionError, match="among 2 processes"):
        wrapped.set_epoch(3)


@pytest.mark.parametrize(("name", "module"), WRAPPERS)
def test_the_whole_is_the_wrappers_to_share_out(url: Path, name: str, module: str) -> None:
    wrapped = wrapper(name, module)(part(url, ranks=1), 2)
    wrapped.set_epoch(0)
    assert len(list(wrapped)) == 10


@pytest.mark.parametrize(("name", "module"), WRAPPERS)
def test_a_wrapper_for_one_process_shares_out_nothing(url: Path, name: str, module: str) -> None:
    assert len(list(wrapper(name, module)(part(url), 1))) == 5


def test_a_class_of_that_name_from_elsewhere_is_anybodys(url: Path) -> None:
    assert len(list(wrapper("IterableDatasetShard", "mine")(part(url), 2))) == 5


class Mine(IterableDataset[Any]):
    """A user's own dataset around one, or around a loader."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[Any]:
        yield from self.inner


@pytest.mark.parametrize("name", ["IterableDatasetShard", "DataLoaderDispatcher"])
def test_what_is_wrapped_twice_is_found(url: Path, name: str) -> None:
    for inner in (part(url), ss.StreamingLoader(part(url), 2)):
        with pytest.raises(OptionError, match="samples would be lost"):
            next(iter(wrapper(name)(Mine(inner), 2)))


def test_a_worker_that_wraps_is_refused(url: Path) -> None:
    wrapped = wrapper("IterableDatasetShard")(part(url), 2)
    with pytest.raises(OptionError, match="samples would be lost"):
        list(DataLoader(wrapped, batch_size=None, num_workers=1, multiprocessing_context="fork"))
