"""What the tests of the SSD tier share: blocks, and where their files lie."""

from __future__ import annotations

import os
import random
from pathlib import Path

from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.disk import DiskTier

GROUP = "0123456789abcdef" * 2
FLUSH = 30.0


def block(number: int, size: int = 100, group: str = GROUP) -> tuple[Block, bytes]:
    return Block(group, str(number), size), random.Random(number).randbytes(size)


def file_of(disk: DiskTier, one: Block) -> Path:
    return Path(disk.path, "blocks", one.group, one.name)


def files(folder: Path) -> list[Path]:
    """The blocks' files; folders that go meanwhile have none."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.parts[-3] == "blocks")


def put(disk: DiskTier, *pairs: tuple[Block, bytes]) -> None:
    for one, data in pairs:
        disk.put(one, data)
    assert disk.flush(FLUSH)
