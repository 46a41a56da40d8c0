"""Each of our datasets keeps the contract, in each order, and with transforms and collates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.testing import DatasetContract
from shardstream.testing.datasets import Opened, item_name
from tests.distributed.training import dataset, pack

SHUFFLES: dict[str, Any] = {
    "natural": False,
    "shuffled": ss.Shuffle(seed=5),
    "lanes": ss.Shuffle(seed=2, lanes=6, window=1),
    "scope": ss.Shuffle(seed=3, lanes=6, scope="lane"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for kind in ("samples", "tokens"):
        pack(folder, kind, documents=62)
    return folder


@pytest.fixture(params=SHUFFLES)
def shuffle(request: pytest.FixtureRequest) -> Any:
    return SHUFFLES[request.param]


def renamed(item: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": item_name(item)}


def keys(items: list[Any]) -> dict[str, Any]:
    return {"__key__": [item_name(item) for item in items]}


class Collated:
    """With batches as the loader makes them, and as a collate of one's own does."""

    @pytest.fixture(params=[{}, {"collate": keys}], ids=["plain", "collate"])
    def loader_options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        found: dict[str, Any] = request.param
        return found


class TestSamples(Collated, DatasetContract):
    @pytest.fixture
    def opened(self, folder: Path, shuffle: Any) -> Opened:
        return lambda topology: dataset(folder / "samples", shuffle=shuffle, topology=topology)


class TestTokens(Collated, DatasetContract):
    @pytest.fixture
    def opened(self, folder: Path, shuffle: Any) -> Opened:
        return lambda topology: dataset(folder / "tokens", shuffle=shuffle, topology=topology)


class TestBestFit(DatasetContract):
    @pytest.fixture
    def opened(self, folder: Path) -> Opened:
        options: dict[str, Any] = {"pack": "best-fit", "shuffle": SHUFFLES["lanes"]}
        return lambda topology: ss.TokenDataset(folder / "tokens", 100, topology=topology, **options)


@pytest.mark.parametrize("shuffle", ["shuffled", "scope"], indirect=True)
class TestSubset(DatasetContract):
    @pytest.fixture
    def opened(self, folder: Path, shuffle: Any) -> Opened:
        def opened(topology: ss.Topology) -> ss.StreamingDataset:
            ds: ss.StreamingDataset = dataset(folder / "samples", shuffle=shuffle, topology=topology)
            return ds.subset(numbers=range(3, 57))

        return opened


class TestMixture(DatasetContract):
    """The first dataset ends it, so that no item comes twice."""

    @pytest.fixture(params=[{}, {"scope": "lane"}], ids=["epoch", "lane"])
    def opened(self, folder: Path, request: pytest.FixtureRequest) -> Opened:
        shuffle = ss.Shuffle(seed=4, lanes=12, **request.param)

        def opened(topology: ss.Topology) -> ss.Mixture:
            ds: ss.StreamingDataset = dataset(folder / "samples", shuffle=shuffle, topology=topology)
            return ss.Mixture([(ds.subset(numbers=range(34)), 2), (ds.subset(numbers=range(34, 62)), 1)])

        return opened


class TestMixtureOfAll(DatasetContract):
    """The shorter dataset starts again before the longer one ends."""

    distinct = False

    @pytest.fixture
    def opened(self, folder: Path) -> Opened:
        def opened(topology: ss.Topology) -> ss.Mixture:
            ds: ss.StreamingDataset = dataset(folder / "samples", topology=topology)
            parts = [(ds.subset(numbers=range(10)), 1), (ds.subset(numbers=range(10, 50)), 1)]
            return ss.Mixture(parts, stop="all")

        return opened


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("natural", "shuffled")]


@pytest.mark.parametrize("shuffle", ["lanes", *LONG], indirect=True)
class TestTransformed(DatasetContract):
    """A transform is called for each item."""

    @pytest.fixture(params=["samples", "tokens"])
    def opened(self, folder: Path, request: pytest.FixtureRequest, shuffle: Any) -> Opened:
        options: dict[str, Any] = {"shuffle": shuffle, "transform": renamed}
        return lambda topology: dataset(folder / request.param, topology=topology, **options)
