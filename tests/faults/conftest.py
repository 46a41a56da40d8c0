"""A dataset behind a server and a fault proxy, and the digests of its frames."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache
from shardstream.storage.store import Store
from tests.corpora import pack_rows
from tests.faults.cached import FrameId, digest, frames_of


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 shards of about four frames of 16 KiB."""
    folder = tmp_path_factory.mktemp("faults-cache")
    numbers = random.Random(0)
    rows = ({"id": f"k{n}", "text": numbers.randbytes(1200).hex(), "number": n} for n in range(700))
    return pack_rows(folder, rows, shard_size="64KiB", frame_size="16KiB")


@pytest.fixture
def documents(corpus: Path, tmp_path: Path) -> Path:
    """The 100 documents of `corpus`, packed."""
    ss.pack(corpus, tmp_path / "packed", workers=1, frame_size="4KiB", shard_size="16KiB")
    return tmp_path / "packed"


@pytest.fixture(scope="module")
def digests(packed: Path) -> dict[FrameId, str]:
    reader = DatasetReader.open(str(packed))
    found = {frame: digest(reader, frame) for frame in frames_of(reader)}
    assert len(found) > 60
    return found


@pytest.fixture
def proxy(nginx: Any, proxy_to: Callable[..., Any], packed: Path) -> Iterator[Any]:
    """A fault proxy in front of a server that holds the dataset as /faults-cache."""
    target = nginx.root / "faults-cache"
    shutil.copytree(packed, target, dirs_exist_ok=True)
    yield proxy_to(nginx)
    shutil.rmtree(target)


class Target:
    """The dataset behind a fault proxy; `write` puts an object past the proxy."""

    def __init__(
        self, proxy: Any, url: str, options: dict[str, Any], write: Callable[[str, bytes], object]
    ) -> None:
        self.proxy, self.url, self.options, self._write = proxy, url, options, write
        self.replaced: set[str] = set()

    def open(self) -> DatasetReader:
        return DatasetReader.open(self.url, self.options, Cache(ram=1000))

    def set(self, **faults: Any) -> None:
        self.proxy.set(only=lambda method, path: "shard-" in path and method == "GET", **faults)

    def replace(self, name: str, data: bytes) -> None:
        self.replaced.add(name)
        self._write(name, data)

    def restore(self, packed: Path) -> None:
        """Put back what the dataset has."""
        for name in self.replaced:
            if (packed / name).exists():
                self._write(name, (packed / name).read_bytes())


@pytest.fixture(scope="module")
def in_weed(weed: Any, packed: Path) -> Store:
    """The dataset in a bucket."""
    store = Store.open(weed.bucket(), weed.options() | {"config_kwargs": {}})
    for path in packed.iterdir():
        store.write(path.name, path.read_bytes())
    return store


@pytest.fixture(scope="module")
def in_nginx(nginx: Any, packed: Path) -> Iterator[Path]:
    """The dataset at a web server."""
    folder: Path = nginx.root / "faults-remote"
    shutil.copytree(packed, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["http", "s3", "obstore"])
def target(request: pytest.FixtureRequest, proxy_to: Callable[..., Any], packed: Path) -> Iterator[Target]:
    if request.param == "http":
        folder: Path = request.getfixturevalue("in_nginx")
        proxy = proxy_to(request.getfixturevalue("nginx"))

        def write(name: str, data: bytes) -> None:
            (folder / name).write_bytes(data)
            later = time.time() + 2  # nginx tells versions by second and size
            os.utime(folder / name, (later, later))

        found = Target(proxy, f"{proxy.url}/{folder.name}", {}, write)
    else:
        store, weed = request.getfixturevalue("in_weed"), request.getfixturevalue("weed")
        proxy = proxy_to(weed)
        options = weed.options(proxy.url) | ({"config_kwargs": {}} if request.param == "s3" else {})
        found = Target(proxy, store.url, options, store.write)
        name = "obstore-s3" if request.param == "obstore" else "fsspec-s3"
        assert found.open().counters["backend"] == name
    yield found
    found.restore(packed)
