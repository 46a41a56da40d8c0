"""An SSD tier with room for all that a test puts into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardstream.storage.disk import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk.open(tmp_path, 1 << 20)
