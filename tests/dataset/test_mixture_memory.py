"""What a mixture holds in memory: after an epoch no more than `keep`, after a dropped one nothing."""

from __future__ import annotations

import gc
import random
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.dataset.mixture_units import MixedSource
from shardstream.dataset.requests import requests_of
from shardstream.dataset.streaming import stream
from shardstream.order.topology import Topology
from shardstream.read.engine.frames import FrameId
from shardstream.read.engine.units import Budget
from tests.corpora import pack_rows


class Watched:
    """The frames of a source as buffers of their own, so that those that somebody holds can be counted."""

    def __init__(self, mixture: ss.Mixture) -> None:
        self._source: MixedSource = mixture._contents.source
        self._readers = [ds._contents.reader for ds in mixture.datasets]
        self.live: list[weakref.ref[np.ndarray[Any, Any]]] = []
        self._sizes: dict[int, int] = {}
        self.fetched = self.given_back = 0

    def fetch_ahead(self, frames: Sequence[FrameId]) -> None:
        self._source.fetch_ahead(frames)

    def counters(self) -> dict[str, Any]:
        return self._source.counters()

    def memory(self) -> dict[str, int]:
        return self._source.memory()

    def limit_idle(self, frames: int, batches: int) -> tuple[int, int]:
        return self._source.limit_idle(frames, batches)

    def check_again(self) -> None:
        self._source.check_again()

    def name(self, shard: int, frame: int) -> str:
        return self._source.name(shard, frame)

    def fetch(self, shard: int, frame: int) -> tuple[int, Any]:
        number, buffer = self._source.fetch(shard, frame)
        mine = np.array(np.frombuffer(buffer, np.uint8))
        self._sizes[id(mine)] = self._size(number, shard, frame)
        self._source.recycle((number, buffer))
        self.live.append(weakref.ref(mine))
        self.fetched += self._sizes[id(mine)]
        return number, mine

    def _size(self, number: int, shard: int, frame: int) -> int:
        """The bytes of a frame as they are counted: without what its buffer is rounded up by."""
        index = self._readers[number].index(shard % (1 << 48))
        return int(index.frame_raw_size[frame])

    def recycle(self, buffer: tuple[int, Any]) -> None:
        self.given_back += self._sizes.pop(id(buffer[1]))

    @property
    def alive(self) -> int:
        """The bytes of all buffers that somebody holds."""
        return sum(buffer.nbytes for buffer in (ref() for ref in self.live) if buffer is not None)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Some datasets of samples and of tokens, compressed so that frames are buffers."""
    found: dict[str, list[Path]] = {"samples": [], "tokens": []}
    numbers = random.Random(0)
    for kind, options in (("samples", {}), ("tokens", {"tokenizer": "bytes", "eos": 256})):
        for size in (90, 40, 15):
            rows = [
                {"id": str(n), "text": "".join(numbers.choices("abcdef ", k=numbers.randint(1, 900)))}
                for n in range(size)
            ]
            folder = tmp_path_factory.mktemp(f"{kind}-{size}")
            found[kind].append(
                pack_rows(folder, rows, compression="zstd", frame_size="8KiB", shard_size="16KiB", **options)
            )
    return found


@settings(max_examples=25)
@given(data=st.data())
def test_no_frame_is_held_after_its_last_use(packed: dict[str, list[Path]], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["samples", "tokens"]))
    shuffle = data.draw(
        st.one_of(
            st.just(False),
            st.builds(
                ss.Shuffle, st.integers(0, 9), st.just(data.draw(st.integers(1, 6))), st.integers(1, 4),
                st.sampled_from(["epoch", "lane"]),
            ),
        )
    )  # fmt: skip
    parts: list[tuple[Any, float]] = []
    for url in data.draw(st.lists(st.sampled_from(packed[kind]), min_size=1, max_size=3)):
        one: Any = ss.StreamingDataset(url, shuffle=shuffle)
        if kind == "tokens":
            one = ss.TokenDataset(url, seq_len=64, shuffle=shuffle)
        parts.append((one, data.draw(st.integers(1, 5))))
    mixture = ss.Mixture(parts, stop=data.draw(st.sampled_from(["first", "all"])))
    keep = data.draw(st.sampled_from([1, 20_000, 60_000]))
    requests = requests_of(Topology(0, 1), 0, mixture.total, data.draw(st.integers(1, 4000)))
    source: Any = Watched(mixture)
    budget = Budget(prefetch=1 << 16, keep=keep, threads=2)
    contents = mixture._contents
    made = stream(contents, 0, requests, contents.maker.listed, budget, source=source)
    stop = data.draw(st.one_of(st.none(), st.integers(0, 60)), label="dropped after")
    for number, _ in enumerate(made):
        if number == stop:
            break
    else:
        assert source.fetched - source.given_back <= keep
        return
    made.close()
    del made, _
    deadline = time.monotonic() + 90
    while source.alive and time.monotonic() < deadline:  # what threads are in the midst of is let go after it
        gc.collect()
        time.sleep(0.005)
    assert not source.alive
