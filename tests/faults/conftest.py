"""A dataset behind a server and a fault proxy, and the digests of its frames."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardstream.read.reader import DatasetReader
from tests.corpora import pack_rows
from tests.faults.cached import FrameId, digest, frames_of


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of about eight frames of 16 KiB."""
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
