"""Ranges by many threads: all bytes, or an error after which nothing is written any more."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shardstream.errors import StorageError
from shardstream.storage.cancellation import CancelScope, working_for
from shardstream.storage.fetch.pool import ElasticPool
from shardstream.storage.fetch.ranges import RangeReader, read_ranges
from shardstream.storage.spans import Part, spans
from shardstream.storage.store import Store
from tests.proxy import Proxy

DATA = os.urandom(1 << 20) * 20  # 20 MiB: three ranges


def wanted(path: str, pieces: int) -> tuple[bytearray, list[tuple[str, int, memoryview]]]:
    memory = bytearray(len(DATA))
    view, step = memoryview(memory), -(-len(DATA) // pieces)
    return memory, [(path, at, view[at : at + step]) for at in range(0, len(DATA), step)]


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path))
    store.write("a", DATA)
    store.write("b", DATA[::-1])
    return store


@pytest.mark.parametrize("pieces", [1, 7, 3000])
def test_several_objects(folder: Store, pieces: int) -> None:
    a, first = wanted("a", pieces)
    b, second = wanted("b", pieces)
    came: list[tuple[str, Sequence[Part]]] = []
    read_ranges(folder, [*first, *second], lambda path, span: came.append((path, span)))
    assert (a, b) == (DATA, DATA[::-1])
    assert sum(len(view) for _, span in came for _, view in span) == 2 * len(DATA)
    assert {path for path, _ in came} == {"a", "b"}
    read_ranges(folder, [])


def test_through_faults(weed: Any, proxy_to: Callable[..., Proxy]) -> None:
    url = weed.bucket()
    Store.open(url, weed.options()).write("a", DATA)
    proxy = proxy_to(weed, status=(503,), share=0.05, reset=0.05, cut=0.05, latency=0.005)
    for more in ({}, {"config_kwargs": {}}):  # by obstore, and by s3fs
        store = Store.open(url, weed.options(proxy.url) | more)
        memory, parts = wanted("a", 40)
        for _ in range(3):
            memory[:] = bytes(len(memory))
            read_ranges(store, parts)
            assert memory == DATA
    assert proxy.counts.injected.total()


def test_many_callers_at_once(folder: Store) -> None:
    def read(_: int) -> bool:
        memory, parts = wanted("a", 5)
        read_ranges(folder, parts)
        return memory == DATA

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(8)))


def test_the_first_error_ends_all_and_then_nothing_is_written(folder: Store) -> None:
    memory, parts = wanted("a", 3)
    with pytest.raises(StorageError, match=r"b: bytes"):
        read_ranges(folder, [("b", len(DATA), memoryview(bytearray(1))), *parts])
    after = bytes(memory)
    assert bytes(memory) == after

    def refuse(path: str, span: Sequence[Part]) -> None:
        raise StorageError("refused")

    with pytest.raises(StorageError, match="refused"):
        read_ranges(folder, parts, refuse)


def test_a_file_that_is_replaced_while_it_is_read(folder: Store) -> None:
    _, parts = wanted("a", 3)

    def replace(path: str, span: Sequence[Part]) -> None:
        Path(str(folder.local_path("a"))).write_bytes(DATA[::-1])

    with pytest.raises(StorageError, match=r"a: it was replaced while it was read"):
        read_ranges(folder, parts, replace, threads=1)


def test_the_end_of_the_scope_ends_the_reading(weed: Any, proxy_to: Callable[..., Proxy]) -> None:
    url = weed.bucket()
    Store.open(url, weed.options()).write("a", DATA)
    proxy = proxy_to(weed, dead=True)
    store = Store.open(url, weed.options(proxy.url))
    _, parts = wanted("a", 3)
    scope = CancelScope()
    threading.Timer(0.3, scope.end).start()
    with working_for(scope), pytest.raises(StorageError, match="given up"):
        read_ranges(store, parts)


def test_a_closed_reader_tells_all_whom_it_has_not_served(folder: Store) -> None:
    _, parts = wanted("a", 300)
    told: list[BaseException | None] = []
    begun = threading.Event()

    def done(error: BaseException | None) -> None:
        told.append(error)
        begun.set()

    ranges = spans([(start, view) for _, start, view in parts], most=1 << 20)
    with RangeReader(folder, threads=1) as reader:
        for span in ranges:
            reader.submit("a", span, done)
        begun.wait(10)
    assert len(told) == len(ranges)
    assert told[0] is None


@pytest.mark.parametrize("limit", [b"", b"ignored"])
def test_servers_without_ranges(nginx: Any, proxy_to: Callable[..., Proxy], limit: bytes) -> None:
    (nginx.root / "whole").mkdir(exist_ok=True)
    (nginx.root / "whole" / "a").write_bytes(DATA)
    proxy = proxy_to(nginx, ignore_range=bool(limit))
    memory, parts = wanted("a", 4)
    read_ranges(Store.open(f"{proxy.url}/whole"), parts)
    assert memory == DATA
    # Nothing is kept: each read asks the server, whose answer may be another one if this one was damaged.
    store = Store.open(f"{proxy.url}/whole")
    before = proxy.counts.requests
    assert [bytes(store.read_range("a", 5, 7)) for _ in range(3)] == [DATA[5:12]] * 3
    assert proxy.counts.requests == before + 3
    assert store.sends_whole("a") == bool(limit)


@pytest.mark.parametrize("queued", [False, True])
def test_an_interrupt_while_a_range_is_submitted(
    folder: Store, monkeypatch: pytest.MonkeyPatch, queued: bool
) -> None:
    submit = ElasticPool.submit

    def interrupted(pool: ElasticPool, task: Callable[[], None]) -> None:
        if queued:
            submit(pool, task)
        raise KeyboardInterrupt

    calls: list[BaseException | None] = []
    memory = memoryview(bytearray(10))
    with RangeReader(folder) as reader:
        reader.submit("a", [(0, memory)], calls.append)
        monkeypatch.setattr(ElasticPool, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reader.submit("b", [(0, memory)], calls.append)
    assert 1 <= len(calls) <= 1 + queued  # closed, which waits for both
