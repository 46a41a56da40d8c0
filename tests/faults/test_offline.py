"""Without a store: what the cache holds is enough, and what it lacks is said."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import shardstream as ss
from shardstream.errors import OptionError, StateError, StorageError
from shardstream.storage.cache.disk import DiskTier
from tests.faults.conftest import Target

# A server that does not answer is given up soon.
QUICK: dict[str, Any] = {
    "retry": ss.Retry(deadline=4.0, span=0.2, pause=0.02),
    "timeouts": ss.Timeouts(connect=0.5, read=0.5),
}


def rows(folder: Path, first: int, count: int) -> Path:
    path = folder / f"rows-{first}.jsonl"
    numbers = range(first, first + count)
    path.write_text("".join(json.dumps({"id": f"k{n}", "text": f"row {n} " * 40}) + "\n" for n in numbers))
    return path


SMALL: dict[str, Any] = {"workers": 1, "frame_size": "2KiB", "shard_size": "16KiB"}


class Site:
    """Datasets behind a server and a proxy, and a cache."""

    def __init__(self, nginx: Any, proxy: Any, folder: Path) -> None:
        self.proxy, self.folder = proxy, folder
        self.root = nginx.root / "offline"
        self.root.mkdir()

    def url(self, name: str = "samples") -> str:
        return f"{self.proxy.url}/offline/{name}"

    def cache(self, **options: Any) -> ss.Cache:
        return ss.Cache(self.folder / "cache", ram="1MB", **options)

    def pack(self, name: str = "samples", first: int = 0, count: int = 120, **options: Any) -> None:
        ss.pack(rows(self.folder, first, count), self.root / name, **SMALL, **options)

    def disk(self) -> DiskTier:
        disk = DiskTier.open(self.folder / "cache")
        assert disk.flush(30)
        return disk

    def kept(self) -> list[Path]:
        return sorted(Path(self.disk().path, "manifests").iterdir())


@pytest.fixture
def site(nginx: Any, proxy_to: Callable[..., Any], tmp_path: Path) -> Iterator[Site]:
    site = Site(nginx, proxy_to(nginx), tmp_path)
    yield site
    shutil.rmtree(site.root)


def keys(ds: Any, **options: Any) -> list[str]:
    return [key for batch in ss.StreamingLoader(ds, 10, **options) for key in batch["__key__"]]


def warmed(site: Site, url: str) -> None:
    assert ss.warm(url, site.cache()).complete
    site.disk()
    site.proxy.reset_counts()


FAULTS: dict[str, dict[str, Any]] = {
    "refused": {}, "silent": {"dead": True}, "503": {"status": (503,), "share": 1.0},
    "500": {"status": (500,), "share": 1.0},
}  # fmt: skip


# How each client tells a store that is gone; by HTTP, all that may be wrong with one.
STARTS = [
    pytest.param(kind, fault, marks=() if kind == "http" or fault in ("refused", "503") else pytest.mark.long)
    for kind in ("http", "s3", "obstore")
    for fault in FAULTS
]


@pytest.mark.parametrize(("target", "fault"), STARTS, indirect=["target"])
def test_a_job_starts_without_its_store(
    target: Target,
    tmp_path: Path,
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = ss.Cache(tmp_path, ram=1000)
    ds = ss.StreamingDataset(target.url, shuffle=True, cache=cache, storage_options=target.options)
    expected = keys(ds)
    assert DiskTier.open(tmp_path).flush(30)
    target.proxy.reset_counts()
    if fault == "refused":
        target.proxy.down()
    target.proxy.set(**FAULTS[fault])
    again = ss.StreamingDataset(target.url, shuffle=True, cache=cache, storage_options=target.options | QUICK)
    assert keys(again) == expected
    [record] = [record for record in caplog.records if record.name == "shardstream.cache"]
    assert record.levelno == logging.WARNING
    assert "the manifest that the cache kept is used" in record.getMessage()
    assert all(path.endswith("manifest.json") for _, path in target.proxy.counts.paths)


def test_a_host_that_is_not_known_is_no_store_either(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.pack()
    warmed(site, site.url())
    # As the cache of a machine that could once resolve this name.
    known, url = site.kept()[0], "http://nowhere.invalid/samples"
    disk = site.disk()
    disk.put_manifest(url, known.name.rpartition("-")[2], known.read_bytes())
    site.disk()
    assert len(keys(ss.StreamingDataset(url, cache=site.cache(), storage_options=QUICK))) == 120
    assert len(caplog.records) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_what_a_store_refuses_is_an_error(site: Site, status: int) -> None:
    site.pack()
    warmed(site, site.url())
    site.proxy.set(status=(status,), share=1.0)
    # An answer that is late would be no refusal.
    patient = {"timeouts": ss.Timeouts(), "retry": ss.Retry(span=0.2, pause=0.02)}
    with pytest.raises(StorageError, match=r"denied|no dataset here|overloaded"):
        ss.StreamingDataset(site.url(), cache=site.cache(), storage_options=patient)


def test_offline_asks_for_no_network_at_all(target: Target, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"has no manifest of it: warm"):
        ss.StreamingDataset(target.url, cache=ss.Cache(tmp_path, offline=True))
    assert ss.warm(target.url, ss.Cache(tmp_path), storage_options=target.options).complete
    target.proxy.reset_counts()
    ds = ss.StreamingDataset(
        target.url, shuffle=True, cache=ss.Cache(tmp_path, offline=True), storage_options=target.options
    )
    loader = ss.StreamingLoader(ds, 10)
    assert sum(batch.size for batch in loader) == 700
    assert loader.stats()["backend"] == "offline"
    assert loader.stats()["remote_bytes"] == 0
    assert (target.proxy.counts.requests, target.proxy.counts.connections) == (0, 0)


def test_offline_opens_no_socket(site: Site) -> None:
    site.pack()
    warmed(site, site.url())
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise SystemExit('a socket')\n"
        "sys.addaudithook(lambda event, _: refuse() if event.startswith('socket.') else None)\n"
        "import shardstream as ss\n"
        f"cache = ss.Cache({str(site.folder / 'cache')!r}, offline=True)\n"
        f"ds = ss.StreamingDataset({site.url()!r}, cache=cache)\n"
        "print(sum(1 for _ in ds), 'fsspec' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=250)
    assert (done.stdout.split(), done.stderr) == (["120", "False"], "")


def test_offline_says_which_shard_is_missing_and_what_to_do(site: Site) -> None:
    site.pack()
    warmed(site, site.url())
    ds = ss.StreamingDataset(site.url(), cache=site.cache(offline=True))
    for path in Path(site.disk().path, "blocks", ds._contents.reader.blocks.group(2)).iterdir():
        if path.name.isdigit():
            path.unlink()
    name = ds.manifest.shards[2].url
    for options in ({}, {"engine": "process"}):
        with pytest.raises(StorageError, match=rf"{name}.*offline=True.*warm it"):
            keys(ds, **options)
    assert site.proxy.counts.requests == 0


def test_a_damaged_block_is_missing_offline(site: Site) -> None:
    site.pack()
    warmed(site, site.url())
    ds = ss.StreamingDataset(site.url(), cache=site.cache(offline=True))
    path = Path(site.disk().path, "blocks", ds._contents.reader.blocks.group(1), "index")
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="warm it"):
        keys(ds)


def token_keys(ds: Any, **options: Any) -> list[list[int]]:
    return [row for batch in ss.StreamingLoader(ds, 4, **options) for row in batch["tokens"].tolist()]


def part(batch: Any) -> list[Any]:
    """What tells one batch from another."""
    return batch["__key__"] if "__key__" in batch else batch["tokens"].tolist()


KINDS = ["samples", "subset", "tokens", "packed", "mixture"]


def made(site: Site, kind: str, cache: ss.Cache) -> tuple[Any, Callable[..., list[Any]]]:
    """A dataset, and how to read it."""
    samples = ss.StreamingDataset(site.url(), shuffle=ss.Shuffle(1), cache=cache)
    if kind == "samples":
        return samples, keys
    if kind == "subset":
        return samples.subset(where=lambda c: c.number % 3 == 0).subset(numbers=range(20)), keys
    if kind == "mixture":
        other = ss.StreamingDataset(site.url("other"), cache=cache)
        return ss.Mixture([(samples, 2), (other, 1)]), keys
    pack = "best-fit" if kind == "packed" else None
    return ss.TokenDataset(site.url("tokens"), 64, pack=pack, shuffle=ss.Shuffle(1), cache=cache), token_keys


def packed_all(site: Site) -> None:
    site.pack()
    site.pack("other", 1000, 60)
    site.pack("tokens", tokenizer="bytes")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_every_kind_of_dataset_starts_offline(site: Site, kind: str, engine: str) -> None:
    packed_all(site)
    online, read = made(site, kind, site.cache())
    expected = read(online)
    site.disk()
    site.proxy.down()
    ds, read = made(site, kind, site.cache(offline=True))
    assert read(ds, engine=engine) == expected
    site.proxy.up()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_the_workers_of_a_dataloader_start_offline(site: Site, start: str) -> None:
    site.pack()
    warmed(site, site.url())
    ds = ss.StreamingDataset(site.url(), cache=site.cache())  # which may ask: its workers need not
    requests = site.proxy.counts.requests
    site.proxy.down()
    loader = torch.utils.data.DataLoader(
        ds, batch_size=10, num_workers=2, collate_fn=list, multiprocessing_context=start
    )
    found = [item["__key__"] for batch in loader for item in batch]
    assert sorted(found) == sorted(f"k{n}" for n in range(120))
    assert (requests, site.proxy.counts.requests) == (1, 1)
    site.proxy.up()


def test_an_always_cached_local_dataset_starts_without_it(site: Site, tmp_path: Path) -> None:
    site.pack()
    place, cache = site.root / "samples", site.cache(always=True)
    expected = keys(ss.StreamingDataset(place, cache=cache))
    site.disk()
    place.rename(tmp_path / "away")
    assert keys(ss.StreamingDataset(place, cache=site.cache(always=True, offline=True))) == expected
    with pytest.raises(StorageError, match="no dataset here"):
        ss.StreamingDataset(place, cache=cache)


def test_a_local_dataset_is_read_where_it_is_offline(site: Site) -> None:
    site.pack()
    assert len(keys(ss.StreamingDataset(site.root / "samples", cache=site.cache(offline=True)))) == 120


def test_the_manifest_that_the_store_gave_last_is_used(site: Site) -> None:
    site.pack()
    first = ss.StreamingDataset(site.url(), cache=site.cache()).manifest
    saved = (site.root / "samples" / "manifest.json").read_bytes()
    site.pack(first=120, append=True)
    second = ss.StreamingDataset(site.url() + "/", cache=site.cache()).manifest
    assert first.fingerprint != second.fingerprint
    assert len(site.kept()) == 2
    offline = site.cache(offline=True)
    assert ss.StreamingDataset(site.url(), cache=offline).manifest == second
    (site.root / "samples" / "manifest.json").write_bytes(saved)  # somebody goes back
    assert ss.StreamingDataset(site.url(), cache=site.cache()).manifest == first
    site.disk()
    assert ss.StreamingDataset(site.url(), cache=offline).manifest == first


def test_another_dataset_is_not_taken_for_it(site: Site) -> None:
    site.pack()
    site.pack("other", 500)
    ss.StreamingDataset(site.url("other"), cache=site.cache())
    site.disk()
    with pytest.raises(StorageError, match=r"samples: offline=True, .*no manifest"):
        ss.StreamingDataset(site.url(), cache=site.cache(offline=True))


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_on_with_the_manifest_that_it_was_saved_with(
    site: Site, kind: str, offline: bool
) -> None:
    packed_all(site)
    old, read = made(site, kind, site.cache())
    loader = ss.StreamingLoader(old, 4)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    rest = [part(batch) for batch in iterator]
    for name, more in (("samples", {}), ("other", {}), ("tokens", {"tokenizer": "bytes"})):
        site.pack(name, first=2000, append=True, **more)
    new, _ = made(site, kind, site.cache())
    newer, longer = ss.StreamingLoader(new, 4).state_dict(), read(new)
    site.disk()
    site.proxy.reset_counts()

    new, _ = made(site, kind, site.cache(offline=offline))
    loader = ss.StreamingLoader(new, 4)
    loader.load_state_dict(state)
    assert [part(batch) for batch in loader] == rest
    assert new.total == old.total
    loader.load_state_dict(newer)  # and from there to the newer one
    assert read(new) == longer
    assert all(not offline and path.endswith("manifest.json") for _, path in site.proxy.counts.paths)


def test_a_state_whose_manifest_is_not_kept_is_refused(site: Site) -> None:
    site.pack()
    ds = ss.StreamingDataset(site.url(), cache=site.cache())
    state = ds.state_dict()
    site.pack(first=120, append=True)
    new = ss.StreamingDataset(site.url(), cache=site.cache())
    for path in site.kept():
        if state["fingerprint"] in path.name:
            path.unlink()
    total = new.total
    with pytest.raises(StateError, match="fingerprint"):
        new.load_state_dict(state)
    with pytest.raises(StateError, match="fingerprint"):
        new.load_state_dict(state | {"fingerprint": "../../claims"})
    assert (new.total, len(list(new))) == (total, 240)


def test_a_state_that_is_refused_changes_nothing(site: Site) -> None:
    packed_all(site)
    for kind in KINDS:
        old, _ = made(site, kind, site.cache())
        state = ss.StreamingLoader(old, 4).state_dict()
        site.pack("samples", 3000 + KINDS.index(kind), 1, append=True)
        site.pack("tokens", 3000 + KINDS.index(kind), 30, append=True, tokenizer="bytes")
        new, read = made(site, kind, site.cache())
        expected = read(new)
        site.disk()
        new, _ = made(site, kind, site.cache())
        with pytest.raises(StateError):
            ss.StreamingLoader(new, 4).load_state_dict(state | {"position": 1 << 40})
        assert read(new) == expected


def test_a_copy_in_another_process_reads_what_the_original_does(site: Site) -> None:
    site.pack()
    ds, bare = (ss.StreamingDataset(site.url(), cache=cache) for cache in (site.cache(), None))
    site.disk()
    copies = [pickle.dumps(each) for each in (ds, bare)]
    site.pack(first=120, append=True)
    for copy in copies:
        assert len(keys(pickle.loads(copy))) == 120


def test_options_that_cannot_be() -> None:
    with pytest.raises(OptionError, match="needs a dir"):
        ss.Cache(offline=True)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "flip":
        path.write_bytes(data.replace(b'"zstd"', b'"none"', 1))
    elif how == "cut":
        path.write_bytes(data[:-20])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "other":  # a sound manifest of another fingerprint
        path.write_bytes(ss.Manifest.build("samples", (), (), {}).to_bytes())
    elif how == "link":
        path.rename(path.with_name("moved"))
        path.symlink_to(path.with_name("moved"))
    elif how == "owner":
        os.chown(path, 12345, 12345)
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "other", "link", "owner", "pipe"])
def test_a_kept_manifest_that_is_damaged_or_not_ours_is_not_used(site: Site, how: str) -> None:
    site.pack()
    ss.StreamingDataset(site.url(), cache=site.cache())
    [path] = site.kept()
    assert path.stat().st_mode & 0o777 == 0o600
    damage(path, how)
    listed = site.disk().info(check=True).damaged
    assert listed == ([] if how in ("link", "owner", "pipe") else [f"manifests/{path.name}"])
    with pytest.raises(StorageError, match="has no manifest of it"):
        ss.StreamingDataset(site.url(), cache=site.cache(offline=True))
    if how in ("link", "owner", "pipe"):
        assert os.path.lexists(path)  # what the cache did not make it leaves alone
        return
    assert not path.exists()
    ss.StreamingDataset(site.url(), cache=site.cache())
    site.disk()
    assert ss.StreamingDataset(site.url(), cache=site.cache(offline=True)).total == 120


def test_a_damaged_one_is_replaced_when_the_store_gives_it_again(site: Site) -> None:
    site.pack()
    ss.StreamingDataset(site.url(), cache=site.cache())
    [path] = site.kept()
    damage(path, "flip")
    ss.StreamingDataset(site.url(), cache=site.cache())
    assert site.kept() == [path]
    assert site.disk().info(check=True).damaged == []


def test_manifests_are_few_counted_and_cleared(site: Site) -> None:
    for number in range(7):
        site.pack(first=number * 1000, count=5, append=number > 0)
        ss.StreamingDataset(site.url(), cache=site.cache())
        site.disk()
    newest = ss.StreamingDataset(site.url(), cache=site.cache()).manifest.fingerprint
    disk = site.disk()
    assert len(site.kept()) == 4
    assert any(newest in path.name for path in site.kept())
    info = disk.info(check=True)
    assert (info.manifests, info.damaged) == (4, [])
    assert disk.used == info.bytes > sum(path.stat().st_size for path in site.kept())
    assert disk.clear().manifests == 4
    assert (disk.used, site.kept()) == (0, [])


def test_blocks_make_room_for_a_manifest(site: Site) -> None:
    site.pack(count=400)
    ds = ss.StreamingDataset(site.url(), cache=site.cache(disk="200KB"))
    assert len(keys(ds)) == 400
    disk = site.disk()
    site.pack(first=400, append=True)
    ss.StreamingDataset(site.url(), cache=site.cache(disk="200KB"))
    assert len(site.kept()) >= 1
    assert disk.capacity // 2 < disk.used <= disk.capacity
    assert disk.manifest(site.url(), ss.StreamingDataset(site.url()).manifest.fingerprint) is not None


def test_a_black_hole_is_given_up_in_time(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A server that takes connections and says nothing, as behind a firewall."""
    site.pack()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/samples"
        warmed(site, site.url())
        known = site.kept()[0]
        site.disk().put_manifest(url, known.name.rpartition("-")[2], known.read_bytes())
        site.disk()
        assert len(keys(ss.StreamingDataset(url, cache=site.cache(), storage_options=QUICK))) == 120
    assert "no answer in time" in caplog.text
