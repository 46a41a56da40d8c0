"""Caches under faults, over real servers; the oracle is the SHA-256 of each frame as it was packed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import CorruptionError, ShardstreamError
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.cache.locks import FetchLocks
from shardstream.storage.cache.options import Cache
from tests.cachefill import digest_of
from tests.faults.cached import FrameId, blocks_in, digest, frames_of, needed, read_all, small, url_of


@pytest.mark.parametrize("disk_format", ["stored", "raw"])
def test_what_was_read_once_is_not_fetched_again(
    proxy: Any, packed: Path, digests: dict[FrameId, str], tmp_path: Path, disk_format: str
) -> None:
    cache = small(tmp_path, disk_format=disk_format)
    for epoch in range(3):
        found, counters = read_all(url_of(proxy), cache, epoch)
        assert found == digests
        assert counters["remote_bytes"] == (needed(packed) if epoch == 0 else 0)


def test_flipped_bits_on_the_wire_are_repaired(
    proxy: Any, digests: dict[FrameId, str], tmp_path: Path
) -> None:
    proxy.faults.only = lambda method, path: method == "GET" and "shard-" in path and path.endswith(".zst")
    proxy.faults.flip = 0.1
    reader = DatasetReader.open(url_of(proxy), cache=small(tmp_path))
    failed = 0
    for frame in frames_of(reader):
        try:
            assert digest(reader, frame) == digests[frame]
        except CorruptionError as error:  # twice in a row
            failed += 1
            assert "shard-" in str(error)  # noqa: PT017
    assert reader.counters["refetches"] > 0
    assert failed < len(digests) // 10
    proxy.faults.flip = 0.0
    assert read_all(url_of(proxy), small(tmp_path))[0] == digests


@pytest.mark.parametrize("disk_format", ["stored", "raw"])
def test_flipped_bits_in_cache_files_are_repaired_from_the_store(
    proxy: Any, digests: dict[FrameId, str], tmp_path: Path, disk_format: str
) -> None:
    cache = small(tmp_path, disk_format=disk_format)
    read_all(url_of(proxy), cache)
    numbers = random.Random(1)
    damaged = 0
    for path in blocks_in(tmp_path):
        data = bytearray(path.read_bytes())
        data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        path.write_bytes(data)
        damaged += 1
    found, counters = read_all(url_of(proxy), cache)
    assert found == digests
    assert counters["refetches"] == damaged
    assert read_all(url_of(proxy), cache)[1]["remote_bytes"] == 0


def test_a_shard_that_is_damaged_in_the_store_is_named(
    proxy: Any, nginx: Any, digests: dict[FrameId, str], tmp_path: Path
) -> None:
    shard = nginx.root / "faults-cache" / "shard-000001.tar.zst"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    reader = DatasetReader.open(url_of(proxy), cache=small(tmp_path))
    reader.ahead.fetch(frames_of(reader))
    bad = []
    for frame in frames_of(reader):
        try:
            assert digest(reader, frame) == digests[frame]
        except CorruptionError as error:
            bad.append(frame)
            assert f"shard-000001.tar.zst, frame {frame[1]}" in str(error)  # noqa: PT017
    assert len(bad) == 1
    assert bad[0][0] == 1
    disk = reader.blocks.tiers.disk
    assert disk is not None
    assert disk.flush(30)
    assert disk.info(check=True).damaged == []


def test_a_dataset_that_was_replaced_never_gets_old_bytes(proxy: Any, nginx: Any, tmp_path: Path) -> None:
    cache = small(tmp_path / "cache")
    read_all(url_of(proxy), cache)
    (tmp_path / "other.jsonl").write_text('{"text": "new"}\n' * 700)
    target = nginx.root / "faults-cache"
    shutil.rmtree(target)
    ss.pack(tmp_path / "other.jsonl", target, workers=1, shard_size="64KiB", frame_size="16KiB")
    expected = read_all(str(target), Cache())[0]
    assert read_all(url_of(proxy), cache)[0] == expected


def test_a_cache_deleted_while_reading_is_one_warning(
    proxy: Any, digests: dict[FrameId, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = DatasetReader.open(url_of(proxy), cache=small(tmp_path))
    order = frames_of(reader)
    with caplog.at_level(logging.WARNING, "shardstream.cache"):
        for number, frame in enumerate(order):
            if number == len(order) // 2:
                shutil.rmtree(tmp_path / os.listdir(tmp_path)[0])
            assert digest(reader, frame) == digests[frame]
        disk = reader.blocks.tiers.disk
        assert disk is not None
        assert disk.flush(30)
    assert len([record for record in caplog.records if record.name == "shardstream.cache"]) == 1


def test_a_directory_that_cannot_be_used_is_one_warning(
    proxy: Any, digests: dict[FrameId, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "shardstream.cache"):
        assert read_all(url_of(proxy), small(tmp_path / "file"))[0] == digests
    assert len([record for record in caplog.records if record.name == "shardstream.cache"]) == 1


# Processes

CONTEXT = multiprocessing.get_context("spawn")


def run_all(target: Callable[..., None], arguments: list[tuple[Any, ...]], seconds: float) -> list[Any]:
    """Run processes at once and return what each puts into its queue; an exception fails the test."""
    queue = CONTEXT.Queue()
    children = [CONTEXT.Process(target=guarded, args=(queue, target, *these)) for these in arguments]
    for child in children:
        child.start()
    results = [queue.get(timeout=seconds) for _ in children]
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert [result for result in results if isinstance(result, str)] == []
    return results


def guarded(queue: Any, target: Callable[..., Any], *arguments: Any) -> None:
    try:
        queue.put(target(*arguments))
    except BaseException as error:
        queue.put(repr(error))


def read_as_process(url: str, folder: str, expected: dict[FrameId, str], locks: bool) -> dict[str, Any]:
    if not locks:
        FetchLocks._locked = lambda self, kind, place: True  # type: ignore[method-assign]
    found, counters = read_all(url, small(Path(folder)))
    assert found == expected
    return counters


@pytest.mark.parametrize(
    ("processes", "locks", "most"),
    [
        (2, True, 1.3),  # without locks it is nearly 2
        (6, True, 1.5),
        (6, False, 6.0),
        pytest.param(16, True, 1.1, marks=pytest.mark.long),
        pytest.param(16, False, 16.0, marks=pytest.mark.long),
    ],
)
def test_processes_on_one_cold_cache(
    proxy: Any,
    packed: Path,
    digests: dict[FrameId, str],
    tmp_path: Path,
    processes: int,
    locks: bool,
    most: float,
) -> None:
    proxy.faults.latency = 0.005
    arguments = [(url_of(proxy), str(tmp_path), digests, locks)] * processes
    counters = run_all(read_as_process, arguments, 240)
    times = sum(one["remote_bytes"] for one in counters) / needed(packed)
    print(f"{processes} processes fetched {times:.3f} times what is needed")
    assert times <= most
    disk = DiskTier.open(tmp_path)
    assert disk.info(check=True).damaged == []
    assert disk.info().blocks == len(digests) + len({shard for shard, _ in digests})


def churn(url: str, folder: str, expected: dict[FrameId, str], limit: int, seconds: float, seed: int) -> int:
    reader = DatasetReader.open(url, cache=small(Path(folder), disk=limit))
    numbers, order = random.Random(seed), frames_of(reader)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        some = numbers.sample(order, 8)
        reader.ahead.fetch(some)
        for frame in some:
            assert digest(reader, frame) == expected[frame]
            count += 1
    return count


@pytest.mark.parametrize("seconds", [2, pytest.param(180, marks=pytest.mark.long)])
def test_eight_readers_of_a_cache_of_two_shards(
    proxy: Any, packed: Path, digests: dict[FrameId, str], tmp_path: Path, seconds: float
) -> None:
    info = DatasetReader.open(str(packed)).manifest.shards[0]
    limit, block = 2 * info.bytes, 24 << 10
    over: list[int] = []
    stop = threading.Event()

    def files() -> dict[int, int]:
        found = {}
        for folder, _, names in os.walk(tmp_path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    one = os.stat(os.path.join(folder, name))
                    found[one.st_ino] = one.st_blocks * 512
        return found

    def watch() -> None:
        while not stop.wait(0.05):
            seen = files()
            # A look that takes long sees files that were never there together.
            if seen == files():
                over.append(sum(seen.values()) - limit - 9 * 4096)  # ledgers take some, too

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        arguments = [(url_of(proxy), str(tmp_path), digests, limit, seconds, seed) for seed in range(8)]
        counts = run_all(churn, arguments, seconds + 200)
    finally:
        stop.set()
        watcher.join()
    over.append(sum(files().values()) - limit - 9 * 4096)  # of a busy machine it may be the only look
    print(f"{sum(counts)} frames read, {max(over) / block:.1f} blocks beyond the limit at most")
    assert min(counts) > 0
    assert max(over) <= 8 * block


def in_a_child(ds: ss.StreamingDataset, queue: Any) -> None:
    queue.put(sum(1 for _ in ds))


@pytest.mark.parametrize("times", [1, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_read_after_their_parent_did(proxy: Any, tmp_path: Path, method: str, times: int) -> None:
    context = multiprocessing.get_context(method)
    ds = ss.StreamingDataset(url_of(proxy), decode=False, cache=small(tmp_path))
    reading = iter(ds)
    assert len(list(itertools.islice(reading, 50))) == 50
    for _ in range(times):
        queue = context.Queue()
        child = context.Process(target=in_a_child, args=(ds, queue))
        child.start()
        assert queue.get(timeout=240) == 700
        child.join(120)
        assert child.exitcode == 0
    assert len(list(reading)) == 650


# Kills and full disks


SHARDS = 2  # with their indexes 16 blocks


def fill(url: str, folder: Path, inject: str) -> subprocess.CompletedProcess[str]:
    """Read some shards through a cache, with a fault injected into a system call."""
    call = inject.partition(":")[0]
    strace = [
        "strace",
        "-f",
        "-o",
        os.devnull,
        "-e",
        f"trace={call}",
        "-e",
        f"inject={inject}",
    ]
    command = [*strace, sys.executable, "-m", "tests.cachefill", url, str(folder), str(SHARDS)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


def fills(
    proxy: Any, tmp_path: Path, inject: str, step: int
) -> Iterator[tuple[Path, subprocess.CompletedProcess[str]]]:
    """Fills with the fault at every `step`th of the calls, each of a folder of its own."""
    for when in range(1, 1000, step):
        folder = tmp_path / f"{when}"
        yield folder, fill(url_of(proxy), folder, inject.format(when))


# (the first call, from which to which next one): one of twelve, or every one.
STEPS = [12, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("call", "calls"), [("pwrite64", 16), ("write", 28), ("linkat", 16), ("unlinkat", 16), ("mkdirat", 16)]
)
def test_a_fill_killed_at_any_call_leaves_a_cache_that_is_sound(
    proxy: Any, packed: Path, tmp_path: Path, call: str, calls: int, step: int
) -> None:
    expected, killed = digest_of(DatasetReader.open(str(packed)), SHARDS), 0
    for folder, done in fills(proxy, tmp_path, f"{call}:signal=SIGKILL:when={{}}", step):
        if done.returncode == 0:
            break
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
        killed += 1
        if Path(DiskTier.path_in(str(folder))).exists():
            assert DiskTier.open(folder).info(check=True).damaged == []
        reader = DatasetReader.open(url_of(proxy), cache=small(folder))
        assert digest_of(reader, SHARDS) == expected
        disk = reader.blocks.tiers.disk
        assert disk is not None
        assert disk.flush(30)
        # Nothing of the killed process is left, and the count is right, or too high by one block.
        assert list(Path(disk.path, "partial").iterdir()) == []
        assert 0 <= disk.used - disk.info().bytes <= 32 << 10
    print(f"killed at {killed} calls of {call}")
    assert killed >= calls // step


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("call", "calls"), [("linkat", 16), ("mkdirat", 16), ("pwrite64", 16)])
def test_a_disk_that_is_full_from_any_call_on_is_one_warning(
    proxy: Any, packed: Path, tmp_path: Path, call: str, calls: int, step: int
) -> None:
    expected, failed = digest_of(DatasetReader.open(str(packed)), SHARDS), 0
    for folder, done in fills(proxy, tmp_path, f"{call}:error=ENOSPC:when={{}}+", step):
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
        if "store is read instead" not in done.stderr:
            break
        failed += 1
        assert done.stderr.count("No space left on device") == 1
        reader = DatasetReader.open(url_of(proxy), cache=small(folder))
        assert digest_of(reader, SHARDS) == expected
        assert DiskTier.open(folder).info(check=True).damaged == []
    print(f"full from {failed} calls of {call} on")
    assert failed >= calls // step


@pytest.mark.parametrize("size", [64, 300, 900])
def test_a_small_file_system_that_is_full(
    proxy: Any, digests: dict[FrameId, str], tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", tmp_path / "disk"], check=True)
    try:
        with caplog.at_level(logging.WARNING, "shardstream.cache"):
            for epoch in range(2):
                found, _ = read_all(url_of(proxy), small(tmp_path / "disk", disk="1GB"), epoch)
                assert found == digests
        assert DiskTier.open(tmp_path / "disk").info(check=True).damaged == []
        warnings = [record for record in caplog.records if "No space left" in record.getMessage()]
        assert len(warnings) in (1, 2)  # one, or one for each reader where nobody else held the cache
    finally:
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def test_a_dead_server_is_a_typed_error_and_the_cache_still_serves(
    proxy: Any, digests: dict[FrameId, str], tmp_path: Path
) -> None:
    cache = small(tmp_path)
    read_all(url_of(proxy), cache)
    options = {"retry": ss.Retry(span=0.2, pause=0.02)}
    reader = DatasetReader.open(url_of(proxy), options, cache)
    blocks = blocks_in(tmp_path)
    proxy.__exit__(None, None, None)
    assert {frame: digest(reader, frame) for frame in frames_of(reader)} == digests
    for path in blocks:
        path.unlink()
    with pytest.raises(ShardstreamError):
        digest(reader, (0, 0))
