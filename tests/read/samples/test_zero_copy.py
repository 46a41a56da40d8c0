"""Frames for consumers that copy nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardstream as ss
from shardstream.memory import MemoryBudget
from shardstream.read.reader import DatasetReader
from shardstream.read.samples.source import SampleSource
from shardstream.read.samples.zero_copy import ZeroCopySource
from shardstream.storage.cache.range_parts import RangeParts, range_of

SIZE = 128 << 10


def test_a_frame_that_is_kept_does_not_keep_the_range_in_which_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ss.pack([{"bin": b"x"}], tmp_path / "ds", workers=1)
    source = ZeroCopySource(DatasetReader.open(str(tmp_path / "ds")), None)
    parts = RangeParts(MemoryBudget(1 << 30))
    found = parts.cut(bytes(4 * SIZE), [(number * SIZE, SIZE, False) for number in range(4)])
    assert range_of(found[0]) is not None
    monkeypatch.setattr(SampleSource, "fetch", lambda self, shard, frame: found[frame])
    kept = memoryview(source.fetch(0, 1))[10:20]
    assert kept == bytes(10)
    assert kept.readonly
    del found[:]
    assert parts.kept == 0  # the whole range is gone
    alone = b"a frame that has memory of its own"
    found.append(memoryview(alone))
    assert memoryview(source.fetch(0, 0)).obj is alone
