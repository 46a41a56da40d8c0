"""Packs on Ray into a store, while nodes, drivers and the store fail: the bytes of one machine.

All of them take minutes. The short form is in test_ray.py.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.packing import reservation
from shardstream.storage.store import Store
from tests.frameworks import ray_calls
from tests.frameworks.ray_nodes import SMALL, Nodes, Pack, files, objects, started
from tests.watch import ended

# What other packages warn of while they start and end servers is theirs.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]
Wanted = dict[int | None, dict[str, str]]
Start = Callable[..., Pack]
_MOST_KILLS = 15  # a busy machine may need more than ten seconds for a start


def killed_after(pack: Pack, rows: int) -> None:
    for _ in zip(range(rows), pack.rows(), strict=False):
        pass
    pack.process.kill()
    pack.process.wait()


@pytest.mark.parametrize("after", [*range(0, 16, 2), 15, 16, *range(17, 33, 2), 30, 32])
def test_a_node_killed_in_either_pass_of_a_shuffle(
    cluster: Nodes, wanted: Wanted, after: int, start: Start, weed: Any, proxy_to: Any
) -> None:
    """The first pass ends with row 16; the store is slow, so that the second one takes a while."""
    proxy = proxy_to(weed, latency=0.05)
    url, options = weed.bucket(), weed.options(proxy.url)
    pack = start(url, cluster.address, shuffle=7, storage_options=options, seconds=0.1)
    for number, (done, tasks, *_) in enumerate(pack.rows()):
        if number == after:
            assert (done, tasks) == (after, 16) if after <= 16 else done == after - 17
            cluster.kill_one()
            break
    code, last, errors = pack.end()
    assert code == 0, errors
    assert objects(url, weed.options()) == wanted[7]
    assert last[4] <= last[3]


@pytest.mark.parametrize("shuffle", [None, 7])
def test_every_engine_makes_the_same_files_of_one_that_is_a_hundred_times_the_others(
    cluster: Nodes, shuffle: int | None, start: Start, tmp_path: Path
) -> None:
    from distributed import Client, LocalCluster

    numbers = random.Random(7)
    for number in range(12):
        with gzip.open(tmp_path / f"{number:02d}.jsonl.gz", "wt") as file:
            for row in range(2000 if number == 5 else 20):
                file.write(json.dumps({"id": f"{row}", "text": numbers.randbytes(200).hex()}) + "\n")
    sources = str(tmp_path / "*.jsonl.gz")
    more: dict[str, Any] = {**SMALL, "shuffle": shuffle}
    ss.pack(sources, tmp_path / "local", workers=4, **more)
    third = cluster.add()
    try:
        code, last, errors = start(tmp_path / "three", cluster.address, sources=sources, **more).end()
    finally:
        cluster.cluster.remove_node(third, allow_graceful=False)
    assert code == 0, errors
    assert last[2] == 3
    code, last, errors = start(tmp_path / "here", "here", sources=sources, workers=2, **more).end()
    assert code == 0, errors
    assert last[2] == 1
    dask_options = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with LocalCluster(**dask_options) as dask, Client(dask) as client:
        ss.pack(sources, tmp_path / "dask", engine=client, **more)
    for _ in range(1 if shuffle is None else 2):
        for part in range(3):
            ss.pack(sources, tmp_path / "parts", part=(part, 3), **more)
    ss.pack(sources, tmp_path / "parts", commit=True, **more)
    one = files(tmp_path / "local")
    assert len(one) > 50
    for name in ("three", "here", "dask", "parts"):
        assert files(tmp_path / name) == one, name


def test_a_fifth_of_the_requests_fail(
    cluster: Nodes, wanted: Wanted, start: Start, weed: Any, proxy_to: Any
) -> None:
    proxy = proxy_to(weed, status=(503,), share=0.2, only=lambda method, path: True)
    url, options = weed.bucket(), weed.options(proxy.url)
    code, _, errors = start(url, cluster.address, shuffle=7, storage_options=options, seconds=0.0).end()
    assert code == 0, errors
    assert proxy.counts.injected["503"] > 25
    assert objects(url, weed.options()) == wanted[7]


def test_a_driver_that_is_killed_every_ten_seconds_ends_with_the_same_bytes(
    cluster: Nodes, wanted: Wanted, start: Start, weed: Any
) -> None:
    url, options = weed.bucket(), weed.options()
    for kills in range(_MOST_KILLS + 1):
        pack = start(url, cluster.address, shuffle=7, storage_options=options, seconds=2.0, resume=kills > 0)
        if kills < _MOST_KILLS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pack.process.wait(10)
            pack.process.kill()
        if pack.end()[0] == 0:
            break
    assert kills >= 2
    assert objects(url, options) == wanted[7]


def test_of_two_drivers_that_resume_at_once_one_ends(
    cluster: Nodes, wanted: Wanted, start: Start, weed: Any
) -> None:
    url, options = weed.bucket(), weed.options()
    killed_after(start(url, cluster.address, shuffle=7, storage_options=options), 5)
    both = [start(url, cluster.address, shuffle=7, storage_options=options, resume=True) for _ in range(2)]
    ends = [pack.end() for pack in both]
    assert 0 in [code for code, _, _ in ends], ends
    for code, _, errors in ends:
        assert code == 0 or "another packer" in errors or "this pack has ended" in errors, errors
    assert objects(url, options) == wanted[7]


def test_a_machine_of_another_plan_that_wakes_does_no_harm(
    wanted: Wanted, start: Start, weed: Any, tmp_path: Path
) -> None:
    """It is frozen in the middle of a pack. Meanwhile the target is emptied, and packed anew."""
    ss.pack(ray_calls.slow(0.0), tmp_path / "other", level=1, **SMALL)
    url, options = weed.bucket(), weed.options()
    store = Store.open(url, options)
    nodes = started(2)
    try:
        first = start(url, nodes.address, storage_options=options, seconds=2.0)
        for _ in zip(range(3), first.rows(), strict=False):
            pass
        frozen = nodes.freeze_one()
        first.process.kill()
        first.process.wait()
        time.sleep(1)  # what was sent before arrives
        store.delete_many(store.list())
        second = start(url, nodes.address, storage_options=options, seconds=2.0, level=1)
        assert ended(lambda: second.process.poll() is not None or shards(store) >= 3, 150)
        assert second.process.poll() is None
        for each in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)
        code, _, errors = second.end()
    finally:
        nodes.shutdown()
    assert code == 0, errors
    assert objects(url, options) == files(tmp_path / "other")
    assert not store.exists(reservation.NAME)


def shards(store: Store) -> int:
    return sum(name.endswith(".tar.zst") for name in store.list())
