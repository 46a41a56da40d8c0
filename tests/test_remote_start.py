"""What a remote dataset asks for, and when: counted, not timed."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.dataset import contents_of
from shardstream.format.manifest import NAME
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Store
from tests.corpora import pack_rows
from tests.distributed import launch

SEEDED = ss.Shuffle(seed=1)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 70 shards of about 32 frames of 4 KiB, not compressed."""
    folder = tmp_path_factory.mktemp("remote-start")
    numbers = random.Random(0)
    rows = ({"id": f"k{n}", "text": numbers.randbytes(200).hex()} for n in range(3000))
    return pack_rows(folder, rows, shard_size="128KiB", frame_size="4KiB", compression="none")


@pytest.fixture
def proxy(nginx: Any, proxy_to: Callable[..., Any], packed: Path) -> Iterator[Any]:
    target = nginx.root / "remote-start"
    shutil.copytree(packed, target, dirs_exist_ok=True)
    yield proxy_to(nginx)
    shutil.rmtree(target)


def read(proxy: Any, shuffle: ss.Shuffle = SEEDED, **options: Any) -> ss.StreamingLoader:
    ds = ss.StreamingDataset(f"{proxy.url}/remote-start", shuffle=shuffle, decode=False, **options)
    return ss.StreamingLoader(ds, batch_size=8, last="short")


@pytest.mark.parametrize("backend", ["obstore-s3", "fsspec-s3"])
def test_connections_to_a_bucket_are_opened_while_the_manifest_is_read(
    weed: Any, proxy_to: Callable[..., Any], packed: Path, backend: str
) -> None:
    proxy, url = proxy_to(weed), weed.bucket()
    only_fsspec = {"config_kwargs": {}} if backend == "fsspec-s3" else {}
    Store.open(url, weed.options() | only_fsspec).write(NAME, (packed / NAME).read_bytes())
    options = weed.options(proxy.url) | only_fsspec
    assert DatasetReader.open(url, options).counters["backend"] == backend
    assert proxy.counts.ranges == []  # not to be streamed
    proxy.set(latency=0.05)
    assert len(ss.StreamingDataset(url, storage_options=options)) == 3000
    # The bytes are asked for a moment after the manifest: there may be nothing on its way yet.
    assert launch.ended(lambda: proxy.counts.ranges and not proxy.counts.in_flight)
    assert proxy.counts.connections > 16
    assert {path.rpartition("/")[2] for _, path in proxy.counts.paths} == {NAME}
    assert {asked for _, asked in proxy.counts.ranges} == {"bytes=0-0"}
    # One of many ranks reads one lane, by the connection that read the manifest.
    proxy.reset_counts()
    ss.StreamingDataset(url, shuffle=SEEDED, storage_options=options, topology=ss.Topology(3, 64))
    assert [count for _, count in proxy.counts.paths.items()] == [1]


def test_a_web_server_is_asked_for_the_manifest_alone(proxy: Any) -> None:
    assert len(ss.StreamingDataset(f"{proxy.url}/remote-start")) == 3000
    assert proxy.counts.paths == {("GET", f"/remote-start/{NAME}"): 1}
    assert proxy.counts.connections == 1


def test_a_first_batch_asks_for_the_manifest_its_indexes_and_its_frames(proxy: Any) -> None:
    loader = read(proxy)
    batches = iter(loader)
    assert len(next(batches)["__key__"]) == 8
    loader.close()
    assert launch.ended(lambda: not proxy.counts.in_flight)
    names = {path.rpartition("/")[2]: count for (_, path), count in proxy.counts.paths.items()}
    assert {method for method, _ in proxy.counts.paths} == {"GET"}
    assert names[NAME] == 1
    # Each index once. Behind the manifest come those of the batch, and then frames: nothing that it does not
    # need is in front of them.
    assert {count for name, count in names.items() if name.endswith(".index")} == {1}
    shards = set(loader._contents.order(0).shards(range(8)).tolist())
    asked = [path.rpartition("/")[2] for path, _ in proxy.counts.ranges]
    assert set(asked[: len(shards)]) == {f"shard-{shard:06d}.index" for shard in shards}
    assert not asked[len(shards)].endswith(".index")


@pytest.mark.parametrize("cached", [False, True])
def test_an_epoch_fetches_each_byte_once_and_neighbours_together(
    proxy: Any, packed: Path, tmp_path: Path, cached: bool
) -> None:
    loader = read(proxy, cache=ss.Cache(tmp_path, ram=1000) if cached else None)
    keys = [key for batch in loader for key in batch["__key__"]]
    assert len(set(keys)) == len(keys) == 3000
    manifest = DatasetReader.open(str(packed)).manifest
    reader = DatasetReader.open(str(packed))
    frames = sum(int(reader.index(shard).frame_size.sum()) for shard in range(len(manifest.shards)))
    assert {method for method, _ in proxy.counts.paths} == {"GET"}  # sizes are in the manifest
    stats = loader.stats()
    assert stats["remote_bytes"] == frames + sum(shard.index_bytes for shard in manifest.shards)
    # Frame by frame there would be one request for each.
    assert stats["requests"] < sum(shard.frames for shard in manifest.shards) // 2


def test_ranks_fetch_no_more_than_their_part(proxy: Any, packed: Path) -> None:
    reader = DatasetReader.open(str(packed))
    total = sum(int(reader.index(n).frame_size.sum()) for n in range(len(reader.manifest.shards)))
    indexes = sum(shard.index_bytes for shard in reader.manifest.shards)
    found = 0
    for rank in range(2):
        # Where lanes meet, both read the frames of a window: with 8 lanes that is little.
        loader = read(proxy, ss.Shuffle(seed=1, lanes=8), topology=ss.Topology(dp_rank=rank, dp_size=2))
        for _ in loader:
            pass
        found += loader.stats()["remote_bytes"]
    # Both need most indexes.
    assert total + indexes <= found <= 1.05 * total + 2 * indexes


def test_a_cache_of_half_the_dataset_hits_half_and_fetches_nothing_twice(tmp_path: Path) -> None:
    numbers = random.Random(0)
    rows = ({"id": f"k{n}", "text": numbers.randbytes(2000).hex()} for n in range(3000))
    pack_rows(tmp_path, rows, shard_size="2MiB", frame_size="60KiB", compression="none")
    reader = DatasetReader.open(str(tmp_path / "packed"))
    infos = list(enumerate(reader.manifest.shards))
    needed = sum(info.index_bytes + int(reader.index(shard).frame_size.sum()) for shard, info in infos)
    kept = ss.Cache(tmp_path / "cache", disk=needed // 2, always=True)
    shuffle = ss.Shuffle(seed=1, lanes=4, window=2)
    ds = ss.StreamingDataset(str(tmp_path / "packed"), shuffle=shuffle, decode=False, cache=kept)
    ds._contents.reader.blocks.tiers.memory = None  # what the SSD tier does alone
    disk = ds._contents.reader.blocks.tiers.disk
    assert disk is not None
    loader = ss.StreamingLoader(ds, batch_size=8, last="short", prefetch="1MiB")
    fetched = [0]
    for _ in range(3):
        assert len({key for batch in loader for key in batch["__key__"]}) == 3000
        assert disk.flush(60)
        fetched.append(loader.stats()["remote_bytes"])
    assert fetched[1] == needed
    for before, after in pairwise(fetched[1:]):
        assert after - before <= 0.55 * needed
    assert disk.used <= disk.limit


@pytest.fixture(scope="module")
def large_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of 96 KiB, which are views of the ranges that they come in."""
    numbers = random.Random(0)
    rows = ({"id": f"k{n}", "text": numbers.randbytes(2000).hex()} for n in range(3000))
    folder = tmp_path_factory.mktemp("large-frames")
    return pack_rows(folder, rows, shard_size="2MiB", frame_size="96KiB", compression="none")


@pytest.mark.parametrize("ram", ["64MiB", "12MiB", "5MiB"])
@pytest.mark.parametrize("disk", [True, False])
def test_views_of_ranges_give_the_right_samples_within_the_budget(
    large_frames: Path, tmp_path: Path, ram: str, disk: bool
) -> None:
    expected = {key: fields["txt"] for key, fields in DatasetReader.open(str(large_frames)).iter_samples()}
    store = f"memory://views-{tmp_path.name}"
    target = Store.open(store)
    for file in large_frames.iterdir():
        target.write(file.name, file.read_bytes())
    cache = ss.Cache(tmp_path / "cache" if disk else None, ram=ram)
    shuffle = ss.Shuffle(seed=1, lanes=4, window=2)
    dataset = ss.StreamingDataset(store, shuffle=shuffle, decode=False, cache=cache)
    loader = ss.StreamingLoader(dataset, batch_size=8, last="short")
    for _ in range(2):
        found: dict[str, bytes] = {}
        for batch in loader:
            found |= {key: bytes(text) for key, text in zip(batch["__key__"], batch["txt"], strict=True)}
        assert found == expected
    # Ranges whose views others still have can only go after them: those of the last batch, and of threads
    # that are about to end.
    del batch
    until = time.monotonic() + 30
    while True:
        contents_of(dataset).reader.budget.make_room()  # type: ignore[attr-defined]
        used = loader.stats()["memory"]["ram"]
        if sum(size for name, size in used.items() if name != "limit") <= used["limit"]:
            break
        assert time.monotonic() < until, used
        time.sleep(0.02)
