"""probe(): within its limits, through the client of the package, with errors that say what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.observe import probe_load
from shardstream.observe.advise_facts import slowdown
from shardstream.observe.probe import probe
from shardstream.observe.probe_limits import Limits
from shardstream.observe.probe_load import calibrated, closed_loop, open_loop
from shardstream.observe.probe_profile import Level, Profile, Sweep, knee_of, percentile
from shardstream.storage.store import Store
from tests.corpora import pack_rows
from tests.servers import Weed
from tests.watch import ended, settled


def upload(folder: Path, weed: Weed) -> str:
    url = weed.bucket()
    store = Store.open(url, weed.options())
    for path in folder.iterdir():
        store.write(path.name, path.read_bytes())
    return url


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_a_value_that_share_of_all_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(sorted(values), share)
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=8))
def test_the_knee_is_the_first_level_near_the_best(rates: list[float]) -> None:
    levels = [Level(2**n, 10, 1, rate, 1, 1, 0, 0) for n, rate in enumerate(rates)]
    knee = knee_of(levels)
    sweep = Sweep(1, tuple(levels), knee)
    assert sweep.at(knee) >= 0.9 * sweep.best.bytes_per_second
    assert all(level.bytes_per_second < 0.9 * max(rates) for level in levels if level.concurrency < knee)


@given(st.lists(st.integers(1, 400), max_size=30), st.integers(0, 1000))
def test_limits_count_what_parts_take(sizes: list[int], most: int) -> None:
    whole = Limits(1e6, most)
    parts = [whole.part(1e6, 0.5), whole.part(1e6, 1.0)]
    taken = sum(size for number, size in enumerate(sizes) if parts[number % 2].take(size))
    assert whole.used == taken == parts[0].used + parts[1].used
    assert parts[0].used <= most // 2
    assert parts[1].used <= most
    assert not Limits(-1, 100).take(1)


def test_a_dataset_in_a_store(tokens: Path, weed: Weed, proxy_to: Callable[..., Any], tmp_path: Path) -> None:
    url = upload(tokens, weed)
    with proxy_to(weed, latency=0.03) as proxy:
        options = weed.options(proxy.url)
        found = probe(url, tmp_path / "cache", seconds=4, most="48MiB", seq_len=128, storage_options=options)
        assert proxy.counts.body_bytes <= 64 << 20  # with what is asked for at least once
    assert found.read_bytes + found.disk_bytes <= 48 << 20
    assert found.store.beside
    assert found.store.base_ms >= 30
    assert all(one.p50_ms >= 30 for one in found.store.latencies)
    assert all(one.p50_ms <= one.p95_ms <= one.p99_ms for one in found.store.latencies)
    assert found.store.throughput is not None
    levels = [level.concurrency for level in found.store.throughput.levels]
    assert levels == [2**power for power in range(len(levels))]
    assert found.store.small is not None
    assert found.rates is not None
    assert found.rates.codec == "zstd"
    assert found.rates.cold_seconds_per_sample > 0
    assert found.rates.work["seq_len"] == 128
    assert found.disk is not None
    assert found.disk.file_bytes > 0
    assert os.listdir(tmp_path / "cache") == []
    assert any("bytes: no object is so large" in text for text in found.cut)
    found.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == found
    assert settled()


def test_any_folder_one_object_and_a_local_dataset(tmp_path: Path, images: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "object").write_bytes(os.urandom(40_000))
    (tmp_path / "deep" / "empty").touch()
    for where in (tmp_path / "deep", tmp_path / "deep" / "er" / "object"):
        found = probe(where, seconds=1, most="8MiB")
        assert found.rates is None
        assert (found.store.objects, found.store.object_bytes) == (1, 40_000)
        assert found.store.backend == "local"
    found = probe(pack_rows(tmp_path, [{"text": "one"}]), seconds=1)  # one frame
    assert found.rates is not None
    assert found.store.throughput is not None
    found = probe(images, seconds=2, image_size=32)
    assert found.rates is not None
    assert found.rates.codec == "none"
    assert found.rates.decompress_bytes_per_second == 0
    assert found.rates.range_bytes == 0
    assert found.rates.busy_cores > 0
    assert 0 < found.shared_work <= 1
    # Two cores that are hardly disturbed are two cores.
    rates = msgspec.structs.replace(found.rates, busy_cores=1.0)
    busy = msgspec.structs.replace(found, cores=2, free_cores=1.9, shared_work=1.0, rates=rates)
    advice = ss.advise(images, busy, image_size=32)
    assert advice.settings["threads"] == 2
    # Cores that share what computes do less: half as much takes twice as long.
    shared = ss.advise(images, msgspec.structs.replace(busy, shared_work=0.5), image_size=32)
    (seconds,), (longer,) = (
        [line.value for line in each.lines if line.name == "a sample from the store"]
        for each in (advice, shared)
    )
    assert longer == pytest.approx(2 * seconds)


def test_cores_that_share_their_caches_take_longer_for_the_same_work() -> None:
    profile = cast(Profile, types.SimpleNamespace(cores=4, shared_work=0.8))
    assert [slowdown(profile, busy) for busy in (0.5, 1, 2.5, 4, 9)] == pytest.approx(
        [1, 1, 1.125, 1.25, 1.25]
    )
    alone = cast(Profile, types.SimpleNamespace(cores=1, shared_work=0.8))
    assert slowdown(alone, 1.0) == 1


def test_cores_are_calibrated_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another program takes one core and half of the work in one of the turns: it does not count.
    turns = iter([(1.0, 50.0), (1.0, 100.0), *[(2.0, 80.0), (1.0, 100.0)] * 5])
    asked = []

    def busy(threads: int, seconds: float) -> tuple[float, float]:
        asked.append(threads)
        return next(turns)

    monkeypatch.setattr(probe_load, "keep_busy", busy)
    assert calibrated(2, 2.4) == (2.0, 1.0, 0.8)
    assert asked == [2, 1] * 4
    monkeypatch.undo()
    free, one, shared = calibrated(2, 0.1)
    assert 0 < free <= 2
    assert 0 < one <= 1
    assert 0 < shared <= 1


def test_errors(tmp_path: Path, images: Path) -> None:
    dead = {"key": "a", "secret": "b", "endpoint_url": "http://127.0.0.1:9"}
    retry = ss.Retry(attempts=1, span=0)
    with pytest.raises(ss.StorageError, match="s3://bucket/x"):
        probe("s3://bucket/x", storage_options={**dead, "retry": retry})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ss.SourceError, match="nothing there"):
        probe(tmp_path / "empty")
    (tmp_path / "file").write_bytes(b"x" * 5000)
    with pytest.raises(ss.StorageError, match="the cache"):
        probe(tmp_path / "file", tmp_path / "file" / "cache", seconds=1, most="1MiB")
    for wrong in ({"seconds": 0}, {"most": "none"}, {"batch": 0}, {"seq_len": 8}, {"cache": "s3://a"}):
        with pytest.raises(ss.OptionError):
            probe(images, **wrong)  # type: ignore[arg-type]
    (tmp_path / "old.json").write_text('{"version": 99}')
    with pytest.raises(ss.CorruptionError, match="version 99"):
        Profile.load(tmp_path / "old.json")


def test_a_load_ends_with_the_first_error() -> None:
    asked = []

    def broken(size: int) -> int:
        asked.append(size)
        if len(asked) > 5:
            raise ss.StorageError("gone")
        return size

    with pytest.raises(ss.StorageError, match="gone"):
        closed_loop(broken, 10, 4, Limits(60, 1 << 20))
    with pytest.raises(ss.StorageError, match="gone"):
        open_loop(broken, 10, 1e5, 0.5, Limits(60, 1 << 20))
    assert settled()


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("probe", signal.SIGINT),
        ("bench", signal.SIGTERM),
        pytest.param("probe", signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("bench", signal.SIGINT, marks=pytest.mark.long),
        pytest.param("bench", signal.SIGKILL, marks=pytest.mark.long),
    ],
)
def test_an_interrupt_leaves_nothing(
    tokens: Path,
    weed: Weed,
    proxy_to: Callable[..., Any],
    tmp_path: Path,
    command: str,
    number: signal.Signals,
) -> None:
    url = upload(tokens, weed)
    cache = tmp_path / "cache"
    with proxy_to(weed, latency=0.05) as proxy:
        options = [f"--storage-option={name}={value}" for name, value in weed.options(proxy.url).items()]
        options += ["--batch=8", "--step-ms=200"] if command == "bench" else []
        begun = [sys.executable, "-m", "shardstream", command, url, "--cache", str(cache), *options]
        process = subprocess.Popen(begun, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert ended(lambda: proxy.counts.requests >= 20)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    if number == signal.SIGKILL:  # then nobody is there to remove the folder
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == (130 if number == signal.SIGINT else 128 + number), said
        assert said.strip() == ("interrupted" if number == signal.SIGINT else "")
        assert not cache.exists() or os.listdir(cache) == []
    assert ended(lambda: nobody_is_left(process.pid))


def nobody_is_left(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return True
    return False
