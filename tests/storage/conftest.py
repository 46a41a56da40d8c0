"""An SSD tier with room for all that a test puts into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardstream.storage.cache.disk import DiskTier


@pytest.fixture
def disk(tmp_path: Path) -> DiskTier:
    return DiskTier.open(tmp_path, 1 << 20)
