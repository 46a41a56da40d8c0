"""A dataset behind a server and a fault proxy, and the digests of its frames."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.read.reader import DatasetReader
from tests.faults.cached import FrameId, digest, frames_of


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of about eight frames of 16 KiB."""
    folder = tmp_path_factory.mktemp("faults-cache")
    numbers = random.Random(0)
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(700):
            row = {"id": f"k{number}", "text": numbers.randbytes(1200).hex(), "number": number}
            file.write(json.dumps(row) + "\n")
    ss.pack(folder / "corpus.jsonl", folder / "packed", workers=1, shard_size="64KiB", frame_size="16KiB")
    return folder / "packed"


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
