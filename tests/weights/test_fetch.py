"""Weights as a folder: one download for a machine, whole files, verified when something was touched."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import shardstream as ss
from shardstream.errors import CorruptionError, OptionError, StorageError
from shardstream.storage.store import Store
from shardstream.weights.urls import folder_name
from tests.proxy import Proxy
from tests.weights.models import of_all_kinds, same, save_sharded
from tests.weights.test_catalog import hub  # noqa: F401 - a fixture


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return of_all_kinds()


@pytest.fixture
def bucket(weed: Any, tmp_path: Path, state: dict[str, torch.Tensor]) -> str:
    """A model in a store, with the files that lie beside weights."""
    save_sharded(state, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"the same once more")
    url: str = weed.bucket()
    store = Store.open(url, weed.options())
    for file in (tmp_path / "model").iterdir():
        store.write(file.name, file.read_bytes())
    return url


def test_a_folder_for_any_loader(
    weed: Any, bucket: str, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    path = ss.fetch_weights(bucket, tmp_path / "cache", storage_options=weed.options())
    assert same(ss.load_weights(path), state)
    names = {name for name in os.listdir(path) if not name.startswith(".")}
    index = "model.safetensors.index.json"
    shards = {f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
    assert names == {*shards, index, "config.json", "shardstream.digests.json"}
    assert os.stat(path).st_mode & 0o77 == 0
    assert same(ss.load_weights(bucket, cache=tmp_path / "cache", storage_options=weed.options()), state)
    assert ss.fetch_weights(bucket, ss.Cache(tmp_path / "cache"), storage_options=weed.options()) == path


def test_what_is_here_is_not_fetched_again(
    weed: Any, proxy_to: Callable[..., Proxy], bucket: str, tmp_path: Path
) -> None:
    proxy = proxy_to(weed)
    options = weed.options(proxy.url)
    path = Path(ss.fetch_weights(bucket, tmp_path / "cache", storage_options=options))
    proxy.reset_counts()
    ss.fetch_weights(bucket, tmp_path / "cache", storage_options=options)
    assert proxy.counts.body_bytes < 10_000  # a list, and the versions
    [part] = path.glob("*00001*")
    os.utime(part)  # touched, and the same
    ss.fetch_weights(bucket, tmp_path / "cache", storage_options=options)
    assert proxy.counts.body_bytes < 20_000


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "link"])
def test_what_was_changed_is_fetched_again(
    weed: Any, bucket: str, tmp_path: Path, state: dict[str, torch.Tensor], damage: str
) -> None:
    path = Path(ss.fetch_weights(bucket, tmp_path / "cache", storage_options=weed.options()))
    [part] = path.glob("*00001*")
    if damage == "flip":
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    elif damage == "cut":
        os.truncate(part, 1000)
    else:
        part.unlink()
        if damage == "link":
            (tmp_path / "elsewhere").write_bytes(b"mine")
            part.symlink_to(tmp_path / "elsewhere")
    ss.fetch_weights(bucket, tmp_path / "cache", storage_options=weed.options())
    assert same(ss.load_weights(path), state)
    assert damage != "link" or (tmp_path / "elsewhere").read_bytes() == b"mine"


def test_a_new_version_in_the_store_is_fetched(weed: Any, bucket: str, tmp_path: Path) -> None:
    path = ss.fetch_weights(bucket, tmp_path / "cache", storage_options=weed.options())
    store = Store.open(bucket, weed.options())
    for name in store.list():
        if name != "config.json":
            store.delete(name)
    new = {"w": torch.ones(3)}
    save_file(new, tmp_path / "new.safetensors")
    store.write("model.safetensors", (tmp_path / "new.safetensors").read_bytes())
    assert ss.fetch_weights(bucket, tmp_path / "cache", storage_options=weed.options()) == path
    assert same(ss.load_weights(path), new)
    assert len(list(Path(path).glob("*.safetensors"))) == 1  # the old ones are gone


def test_without_the_store_what_is_here_is_used(
    weed: Any, proxy_to: Callable[..., Proxy], bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = proxy_to(weed)
    options = weed.options(proxy.url) | {"retry": ss.Retry(attempts=1)}
    path = ss.fetch_weights(bucket, tmp_path / "cache", storage_options=options)
    proxy.down()
    assert ss.fetch_weights(bucket, tmp_path / "cache", storage_options=options) == path
    assert "what was fetched before is used" in caplog.text
    next(Path(path).glob("*00001*")).unlink()
    with pytest.raises(StorageError):
        ss.fetch_weights(bucket, tmp_path / "cache", storage_options=options)


def fetch(url: str, cache: str, options: dict[str, Any]) -> None:
    assert len(ss.load_weights(url, cache=cache, storage_options=options)) > 5


def test_eight_processes_download_once(
    weed: Any, proxy_to: Callable[..., Proxy], bucket: str, tmp_path: Path
) -> None:
    proxy = proxy_to(weed, latency=0.01)
    total = sum(file.stat().st_size for file in (tmp_path / "model").iterdir())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "shardstream.weights.load", "shardstream.weights.fetch"])
    arguments = bucket, str(tmp_path / "cache"), weed.options(proxy.url)
    ranks = [context.Process(target=fetch, args=arguments) for _ in range(8)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * 8
    assert proxy.counts.body_bytes < 1.05 * total + 300_000  # headers, and lists for each process


def test_a_killed_download_is_begun_again(
    weed: Any, proxy_to: Callable[..., Proxy], bucket: str, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    proxy = proxy_to(weed, stall=1.0, only=lambda method, path: "00002-of" in path)
    context = multiprocessing.get_context("forkserver")
    arguments = bucket, str(tmp_path / "cache"), weed.options(proxy.url)
    rank = context.Process(target=fetch, args=arguments)
    rank.start()
    deadline = time.monotonic() + 60
    while not proxy.counts.injected["stall"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert rank.pid
    os.kill(rank.pid, signal.SIGKILL)
    rank.join(30)
    path = ss.fetch_weights(bucket, tmp_path / "cache", storage_options=weed.options())
    assert same(ss.load_weights(path), state)


def test_a_full_disk_is_an_error_that_says_so(weed: Any, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="making"):
        ss.fetch_weights(bucket, tmp_path / "file", storage_options=weed.options())
    with pytest.raises(OptionError, match="a folder on a local disk"):
        ss.fetch_weights(bucket, "s3://bucket/cache")
    with pytest.raises(OptionError, match="a folder on a local disk"):
        ss.fetch_weights(bucket, ss.Cache())


def test_damage_in_the_store_is_an_error(tmp_path: Path) -> None:
    from shardstream.weights.check import verify_weights

    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(1000)}, folder / "model.safetensors")
    assert verify_weights(str(folder), record=True).checked == []
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CorruptionError, match="damaged"):
        ss.fetch_weights(folder, tmp_path / "cache")
    with pytest.raises(CorruptionError, match="damaged"):
        verify_weights(str(folder))


def test_web_servers_and_the_hub(nginx: Any, hub: Any, tmp_path: Path) -> None:  # noqa: F811
    state = of_all_kinds(10)
    save_sharded(state, hub.files)
    (hub.files / "config.json").write_text("{}")
    plain = nginx.root / "plain-weights"
    shutil.copytree(hub.files, plain)
    path = ss.fetch_weights(f"{nginx.url}/plain-weights", tmp_path / "cache")
    assert same(ss.load_weights(path), state)
    assert (Path(path) / "config.json").exists()
    shas = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in hub.files.glob("*.safetensors")
    }
    assert same(ss.load_weights(ss.fetch_weights(hub.publish(shas), tmp_path / "cache")), state)
    url = hub.publish(dict.fromkeys(shas, "0" * 64))
    with pytest.raises(CorruptionError, match="its SHA-256 is not that of the Hub"):
        ss.fetch_weights(url, tmp_path / "other")


def test_files_that_are_added_are_fetched(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    first, second = {"p": torch.ones(3)}, {"q": torch.ones(4)}
    save_file(first, model / "a.safetensors")
    assert same(ss.load_weights(model, cache=tmp_path / "cache"), first)
    save_file(second, model / "b.safetensors")
    (model / "config.json").write_text("{}")
    assert same(ss.load_weights(model, cache=tmp_path / "cache"), first | second)
    folder = Path(ss.fetch_weights(model, tmp_path / "cache"))
    assert (folder / "config.json").read_text() == "{}"
    before = os.stat(folder / "shardstream.digests.json").st_mtime_ns
    (model / "pytorch_model.bin").write_bytes(b"the same once more")
    ss.fetch_weights(model, tmp_path / "cache")
    assert os.stat(folder / "shardstream.digests.json").st_mtime_ns == before  # nothing was fetched


def test_files_that_are_added_to_a_web_server_are_fetched(nginx: Any, tmp_path: Path) -> None:
    model = nginx.root / "grown-weights"
    model.mkdir()
    save_file({"p": torch.ones(3)}, model / "model.safetensors")
    folder = Path(ss.fetch_weights(f"{nginx.url}/grown-weights", tmp_path / "cache"))
    (model / "config.json").write_text("{}")
    ss.fetch_weights(f"{nginx.url}/grown-weights", tmp_path / "cache")
    assert (folder / "config.json").read_text() == "{}"
    state = of_all_kinds(6)
    save_sharded(state, model)
    assert same(ss.load_weights(f"{nginx.url}/grown-weights", cache=tmp_path / "cache"), state)


def test_a_store_that_fails_is_no_file_that_is_missing(
    weed: Any, proxy_to: Callable[..., Proxy], bucket: str, tmp_path: Path
) -> None:
    proxy = proxy_to(weed, status=(503,), share=1.0, only=lambda method, path: path.endswith("config.json"))
    options = weed.options(proxy.url) | {"retry": ss.Retry(attempts=1)}
    with pytest.raises(StorageError, match=r"config\.json"):
        ss.fetch_weights(bucket, tmp_path / "cache", storage_options=options)
    proxy.set()
    assert "config.json" in os.listdir(ss.fetch_weights(bucket, tmp_path / "cache", storage_options=options))


def test_folders_of_other_urls_are_others(tmp_path: Path) -> None:
    folders = set()
    for number, name in enumerate(["m", "m?1", "m?2", "m#1", "m#1.safetensors", "m?1.safetensors"]):
        file = tmp_path / name
        if not name.endswith("safetensors"):
            file.mkdir()
            file = file / "model.safetensors"
        save_file({"w": torch.full((2,), float(number))}, file)
        folder = Path(ss.fetch_weights(tmp_path / name, tmp_path / "cache"))
        folders.add(folder)
        assert name in ("m", "m?1", "m?2", "m#1") or (folder / name).exists()
        assert same(ss.load_weights(tmp_path / name, cache=tmp_path / "cache"), load_file(file))
    assert len(folders) == 6
    url = "https://host/m.safetensors"
    names = {folder_name(f"{url}{query}") for query in ("", "?X-Amz-Signature=1", "?sig=b&se=3#x")}
    assert len(names) == 1
    assert len({folder_name(f"{url}?versionId={number}&sig=x") for number in (1, 2)} | names) == 3
