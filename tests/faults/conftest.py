"""A dataset behind a server and a fault proxy, and the digests of its frames."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardstream.read.reader import DatasetReader
from shardstream.storage.cache import Cache
from shardstream.storage.remote import Store
from tests.corpora import pack_rows
from tests.faults.cached import FrameId, digest, frames_of


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 shards of about four frames of 16 KiB."""
    folder = tmp_path_factory.mktemp("faults-cache")
    numbers = random.Random(0)
    rows = ({"id": f"k{n}", "text": numbers.randbytes(1200).hex(), "number": n} for n in range(700))
    return pack_rows(folder, rows, shard_size="64KiB", frame_size="16KiB")


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
    """The dataset behind a fault proxy."""

    def __init__(
        self, proxy: Any, url: str, options: dict[str, Any], replace: Callable[[str, bytes], object]
    ):
        self.proxy, self.url, self.options, self.replace = proxy, url, options, replace

    def open(self) -> DatasetReader:
        return DatasetReader.open(self.url, self.options, Cache(ram=1000))

    def set(self, **faults: Any) -> None:
        self.proxy.set(only=lambda method, path: "shard-" in path and method == "GET", **faults)


@pytest.fixture(params=["http", "s3", "obstore"])
def target(
    request: pytest.FixtureRequest, nginx: Any, weed: Any, proxy_to: Callable[..., Any], packed: Path
) -> Iterator[Target]:
    if request.param == "http":
        folder = nginx.root / "faults-remote"
        shutil.copytree(packed, folder)
        proxy = proxy_to(nginx)
        yield Target(
            proxy, f"{proxy.url}/faults-remote", {}, lambda name, data: (folder / name).write_bytes(data)
        )
        shutil.rmtree(folder)
        return
    proxy = proxy_to(weed)
    url, options = weed.bucket(), weed.options(proxy.url)
    if request.param == "s3":
        options["config_kwargs"] = {}  # which obstore does not know
    direct = Store.open(url, weed.options() | {"config_kwargs": {}})
    for path in packed.iterdir():
        direct.write(path.name, path.read_bytes())
    found = Target(proxy, url, options, direct.write)
    assert found.open().counters["backend"] == ("obstore-s3" if request.param == "obstore" else "fsspec-s3")
    yield found
