"""A stall shows in the stage in which it was made: at the store, on the disk, in decoding, in the loop."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.counters.bottleneck import bottleneck
from shardstream.counters.snapshots import read_own
from shardstream.storage.cache.entries import Entries
from tests.proxy import Proxy
from tests.servers import Nginx

FAULTS = {
    "store": "request",
    "disk": "disk",
    "decode": "decode",
    "transform": "transform",
    "consumer": "step",
}


stalls = False


@ss.decoder("stalling")
def decoded(data: bytes) -> bytes:
    time.sleep(0.01 * stalls)
    return data


def slow(sample: Any) -> Any:
    time.sleep(0.01)
    return sample


@pytest.fixture(scope="module")
def served(nginx: Nginx) -> str:
    folder = Path(nginx.root) / "bottleneck"
    with ss.Writer(folder, frame_size="64KiB") as writer:
        for number in range(128):
            writer.write({"__key__": f"{number}", "it.stalling": os.urandom(8 << 10)})
    return "bottleneck"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 5))])
def test_a_stall_shows_in_its_stage(
    fault: str,
    number: int,
    served: str,
    nginx: Nginx,
    proxy_to: Callable[..., Proxy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = proxy_to(nginx)
    cache = ss.Cache(tmp_path / "cache", ram=1)
    monkeypatch.setattr(sys.modules[__name__], "stalls", fault == "decode")
    ds = ss.StreamingDataset(
        f"{proxy.url}/{served}", cache=cache, transform=slow if fault == "transform" else None,
        shuffle=ss.Shuffle(number),
    )  # fmt: skip
    if fault == "disk":
        ss.warm(ds)
        read = Entries.read
        monkeypatch.setattr(Entries, "read", lambda *given: time.sleep(0.1) or read(*given))
    if fault == "store":
        proxy.set(latency=0.3)
    loader = ss.StreamingLoader(ds, batch_size=4, threads=2)
    before = read_own()
    for _ in loader:
        if fault == "consumer":
            time.sleep(0.15)  # well above what a busy machine adds to a request
    assert bottleneck(read_own().since(before)) == FAULTS[fault]
