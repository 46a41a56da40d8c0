"""Iterators that are dropped, fail or are interrupted leave nothing behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from tests.distributed.training import dataset, everything, names, pack
from tests.watch import descriptors, settled, threads


@pytest.fixture(scope="module", params=["samples", "tokens"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), request.param)


def memory() -> int:
    """The memory that this process has for itself, bytes: shares of pages vary with what other tests run."""
    # What threads that come and go leave free in the allocator's arenas is no leak.
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no Anonymous in smaps_rollup")


def ways(url: Path, way: str) -> Any:
    if way == "dataset":
        return dataset(url)
    return ss.StreamingLoader(dataset(url), 8, collate=list if way == "collate" else None)


@pytest.mark.parametrize("way", ["loader", "collate", "dataset"])
def test_iterators_dropped_half_way(packed: Path, way: str) -> None:
    one = ways(packed, way)

    def drop(times: int) -> None:
        for number in range(times):
            iterator = iter(one)
            for _ in range(number % 4):
                next(iterator)
            if number % 3 == 0:
                iterator.close()
            del iterator

    # Shards that were read stay mapped, and the allocator grows to what one iteration needs.
    list(one)
    drop(20)
    assert settled()
    open_files, used = descriptors(), memory()
    drop(200)
    assert settled()
    assert not threads()
    assert descriptors() <= open_files
    # An iteration holds about 200 KB of frames and batches, in stacks and pools more: 200 that leak are
    # tens of MB. Arenas of threads that come and go make the rest: some MB either way.
    assert memory() - used < 8 << 20


@pytest.mark.parametrize("way", ["loader", "collate", "dataset"])
def test_an_exception_of_the_consumer_ends_the_threads(packed: Path, way: str) -> None:
    one = ways(packed, way)

    def consume() -> None:
        for number, _ in enumerate(one):
            1 // (3 - number)

    with pytest.raises(ZeroDivisionError):
        consume()
    assert settled()
    assert list(one)
    assert settled()


INTERRUPTED = """
import sys, threading
import shardstream as ss

url, kind, way = sys.argv[1:]
options = {"seq_len": 32} if kind == "tokens" else {}
ds = (ss.TokenDataset if kind == "tokens" else ss.StreamingDataset)(url, shuffle=True, **options)
one = ds if way == "dataset" else ss.StreamingLoader(ds, 8)
try:
    while True:
        for number, _ in enumerate(one):
            if number == 3:
                print("running", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
"""


def left_over() -> set[str]:
    return {str(path) for path in Path("/dev/shm").glob("*shardstream*")}


@pytest.mark.parametrize(
    ("packed", "way"),
    [
        ("samples", "loader"),
        ("tokens", "dataset"),
        pytest.param("samples", "dataset", marks=pytest.mark.long),
        pytest.param("tokens", "loader", marks=pytest.mark.long),
    ],
    indirect=["packed"],
)
def test_ctrl_c_ends_a_run_and_leaves_nothing(packed: Path, way: str, tmp_path: Path) -> None:
    before = left_over()
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(packed), packed.name, way],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "running\n"
        run.send_signal(signal.SIGINT)
        output, errors = run.communicate(timeout=250)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == -signal.SIGINT, errors
    assert output.endswith("interrupted\n")
    # Only the signal: no error of a thread or of the interpreter's end beside it.
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    assert not list(tmp_path.iterdir())  # its temporary files are here
    assert not left_over() - before


def test_all_items_come_after_many_drops(packed: Path) -> None:
    loader = ss.StreamingLoader(dataset(packed), 8, last="short")
    for _ in range(5):
        next(iter(loader))
    assert sorted(row for batch in loader for row in names(batch)) == everything(packed)


class UnusualError(Exception):
    """An exception of the user's own kind."""


@pytest.mark.parametrize(
    ("where", "way"), [("transform", "loader"), ("collate", "loader"), ("transform", "dataset")]
)
def test_errors_of_user_code_keep_their_type_and_name_the_sample(packed: Path, where: str, way: str) -> None:
    broken = True

    def refuse(item: Any) -> Any:
        if broken:
            raise UnusualError("cannot use it")
        return item

    ds = dataset(packed, shuffle=False, transform=refuse if where == "transform" else None)
    one = (
        ds if way == "dataset" else ss.StreamingLoader(ds, 8, collate=refuse if where == "collate" else None)
    )
    for _ in range(2):
        one.set_epoch(0)
        with pytest.raises(UnusualError, match="cannot use it") as caught:
            next(iter(one))
        if sys.version_info >= (3, 11):
            (note,) = caught.value.__notes__
            named = "begins with" if packed.name == "tokens" else "00000"
            assert f"in the {where} of" in note
            assert str(packed) in note
            assert named in note or (where, packed.name) == ("collate", "tokens")
        assert settled()
    broken = False
    one.set_epoch(0)
    assert sum(1 for _ in one) == len(one)
