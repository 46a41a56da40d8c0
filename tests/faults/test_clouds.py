"""Azure and Google: packed, read, appended to, warmed and broken over real servers, by every backend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import shardstream as ss
from shardstream.errors import CommitError, CorruptionError, StorageError
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache
from shardstream.storage.store import Store
from tests.cachefill import digest_of
from tests.faults.told import CANARY, FAULTS, said_of

# As in production, but that a server which says nothing is given up sooner.
QUICK = {"retry": {"deadline": 30.0, "span": 0.0}, "timeouts": {"connect": 5.0, "read": 5.0}}
BACKENDS = ["azure-fsspec", "azure-obstore", "google-fsspec", "google-obstore"]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)


class Cloud:
    """A place in a store; options by which it is read, directly or through a proxy, and written."""

    def __init__(self, backend: str, server: Any, folder: Path) -> None:
        self.backend, self.server, self._folder = backend, server, folder
        self.url: str = server.bucket()

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        if self.backend == "google-obstore":
            return {**self.server.account(self._folder, endpoint), **QUICK}
        found: dict[str, Any] = self.server.options(endpoint)
        return found | QUICK | ({"max_concurrency": 4} if self.backend == "azure-fsspec" else {})

    def to_write(self) -> dict[str, Any]:
        """The server for Google does not know the uploads that obstore makes."""
        return self.server.options() | QUICK if self.backend == "google-obstore" else self.options()

    def copy(self, packed: Path) -> str:
        store = Store.open(self.url, self.to_write())
        for path in packed.iterdir():
            store.write(path.name, path.read_bytes())
        return self.url


@pytest.fixture(params=BACKENDS)
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> Cloud:
    server = request.getfixturevalue("azurite" if request.param.startswith("azure") else "gcs")
    return Cloud(request.param, server, tmp_path)


def rows(path: Path, count: int, first: int = 0) -> str:
    lines = (json.dumps({"id": f"k{n:04d}", "text": f"row {n} " * 40}) for n in range(first, first + count))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


SMALL = {"shard_size": "16KiB", "frame_size": "4KiB", "workers": 1}


def keys(ds: Any) -> list[str]:
    return [key for batch in ss.StreamingLoader(ds, 10, last="short") for key in batch["__key__"]]


def test_packed_read_verified_appended_to_and_warmed(cloud: Cloud, tmp_path: Path) -> None:
    writing, reading = cloud.to_write(), cloud.options()
    first = rows(tmp_path / "a.jsonl", 100)
    ss.pack(first, cloud.url, storage_options=writing, **SMALL)
    ds = ss.StreamingDataset(cloud.url, storage_options=reading)
    expected = [f"k{n:04d}" for n in range(100)]
    assert keys(ds) == expected
    kind, talks = cloud.backend.split("-")
    name = {"azure": "abfs", "google": "gs"}[kind] if talks == "fsspec" else {"google": "gcs"}.get(kind, kind)
    assert ds._contents.reader.counters["backend"] == f"{talks}-{name}"
    assert ss.verify(cloud.url, deep=True, storage_options=reading).sound
    with pytest.raises(CommitError):
        ss.pack(first, cloud.url, storage_options=writing, **SMALL)
    # A source in the store, found by a pattern.
    Store.open(f"{cloud.url}/in", writing).write(
        "b.jsonl", Path(rows(tmp_path / "b.jsonl", 50, 100)).read_bytes()
    )
    ss.pack(f"{cloud.url}/in/*.jsonl", cloud.url, append=True, storage_options=writing, **SMALL)
    cache = ss.Cache(tmp_path / "cache", ram="1MiB")
    ss.warm(cloud.url, cache=cache, ranks=[0], dp_size=1, storage_options=reading)
    ds = ss.StreamingDataset(cloud.url, cache=cache, shuffle=True, storage_options=reading)
    assert sorted(keys(ds)) == expected + [f"k{n:04d}" for n in range(100, 150)]
    assert ds._contents.reader.counters["remote_bytes"] == 0


WRONG: dict[str, dict[str, Any]] = {
    "errors": {"status": (500, 503, 429), "share": 0.2},
    "ends": {"reset": 0.1, "cut": 0.1},
    "flips": {"flip": 0.05},
}
# obstore has one client for all clouds: tests/faults/test_remote.py has all faults at S3.
LONG = [("azure-obstore", "ends"), ("azure-obstore", "flips")]
LONG += [("google-obstore", "errors"), ("google-obstore", "flips")]
MENDED = [
    pytest.param(
        backend, faults, id=f"{backend}-{kind}", marks=pytest.mark.long if (backend, kind) in LONG else ()
    )
    for backend in BACKENDS
    for kind, faults in WRONG.items()
]


@pytest.mark.parametrize(("cloud", "faults"), MENDED, indirect=["cloud"])
def test_faults_on_the_way_are_mended(
    cloud: Cloud, packed: Path, proxy_to: Callable[..., Any], faults: dict[str, Any]
) -> None:
    digest = digest_of(DatasetReader.open(str(packed)))
    proxy = proxy_to(cloud.server)
    # So many tries that by chance no request uses them up.
    options = cloud.options(proxy.url) | {"retry": {"attempts": 12, "deadline": 60.0, "span": 0.0}}
    reader = DatasetReader.open(cloud.copy(packed), options, Cache(ram=1000))
    proxy.set(only=lambda method, path: "shard-" in unquote(path) and method == "GET", **faults)
    shards = enumerate(reader.manifest.shards)
    reader.fetch_indexes_ahead(list(range(len(reader.manifest.shards))))
    reader.ahead.fetch([(shard, frame) for shard, info in shards for frame in range(info.frames)])
    try:
        assert digest_of(reader) == digest
    except CorruptionError:  # twice in a row
        assert "flip" in faults
    assert sum(proxy.counts.injected.values()) > 0


def test_permanent_errors_are_not_tried_again(
    cloud: Cloud, packed: Path, proxy_to: Callable[..., Any]
) -> None:
    proxy = proxy_to(cloud.server)
    reader = DatasetReader.open(cloud.copy(packed), cloud.options(proxy.url), Cache(ram=1000))
    for status in (403, 404, 400):
        proxy.reset_counts()
        proxy.set(only=lambda method, path: "shard-" in unquote(path), status=(status,), share=1.0)
        with pytest.raises(StorageError, match=f"shard-000000.*{status}"):
            reader.index(0)
        assert 1 <= proxy.counts.injected[str(status)] <= 1 + reader.counters["hedges"]


def test_an_object_that_is_replaced_is_an_error_that_names_it(cloud: Cloud, packed: Path) -> None:
    reader = DatasetReader.open(cloud.copy(packed), cloud.options(), Cache(ram=1000))
    reader.frame(3, 0)
    name = reader.manifest.shards[3].url
    data = (packed / name).read_bytes()
    Store.open(cloud.url, cloud.to_write()).write(name, data[:-100] + bytes(100))
    with pytest.raises(StorageError, match=rf"{name}: it was replaced while it was read"):
        reader.frame(3, 1)


def test_what_is_wrong_with_a_place_or_its_credentials_is_said(cloud: Cloud) -> None:
    store = Store.open(cloud.url, cloud.to_write())
    store.write("x", b"x")
    scheme = cloud.url.partition("://")[0]
    good = cloud.options()
    cases: list[tuple[str, dict[str, Any], str]] = [
        (f"{cloud.url}/nothing", good, "no dataset here"),
        (f"{scheme}://no-such-place/x", good, "no such (bucket|container)|no dataset here"),
        (cloud.url, cloud.options("http://127.0.0.1:9"), "connection was|none was possible"),
    ]
    if cloud.backend.startswith("azure"):
        wrong = cloud.server.options(key="d3Jvbmc=") | {
            k: v for k, v in good.items() if k == "max_concurrency"
        }
        more = {k: v for k, v in good.items() if k == "max_concurrency"}
        cases += [
            (cloud.url, wrong, "credentials are refused|access is denied"),
            (cloud.url, more, "no account was given.*connection_string"),
            (cloud.url, {"connection_string": "nonsense"}, "cannot open the store.*connection string"),
        ]
    else:
        cases += [
            (cloud.url, {"token": "/no/such/file"}, "cannot open the store.*credentials"),
        ]
    for place, options, said in cases:
        with pytest.raises(StorageError, match=said) as caught:
            DatasetReader.open(place, options | QUICK | {"retry": ss.Retry(attempts=2, span=0.0)})
        assert place in str(caught.value)


def test_two_packers_at_once(cloud: Cloud, tmp_path: Path) -> None:
    """One of them wins, or both write the same; nobody sees a mixture."""
    sources = [rows(tmp_path / f"{number}.jsonl", 60, first=number * 60) for number in range(2)]

    def attempt(source: str) -> Any:
        try:
            return ss.pack(source, cloud.url, storage_options=cloud.to_write(), **SMALL).fingerprint
        except CommitError:
            return None

    with ThreadPoolExecutor(2) as pool:
        made = [found for found in pool.map(attempt, sources) if found]
    reader = DatasetReader.open(cloud.url, cloud.options())
    assert [reader.manifest.fingerprint] == made
    assert ss.verify(cloud.url, deep=True, storage_options=cloud.options()).sound


PACKS = """
import json, sys
import shardstream as ss
source, url, options = json.loads(sys.stdin.read())
ss.pack(source, url, resume=True, storage_options=options, shard_size="16KiB", frame_size="4KiB", workers=1)
"""


@pytest.mark.parametrize("kills", [(2, 5), pytest.param(range(1, 40), marks=pytest.mark.long)])
@pytest.mark.parametrize("server", ["azurite", "gcs"])
def test_a_packer_killed_at_any_request_shows_nothing_and_resumes(
    server: str,
    kills: Iterable[int],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    proxy_to: Callable[..., Any],
) -> None:
    cloud = Cloud(
        "azure-obstore" if server == "azurite" else "google-fsspec", request.getfixturevalue(server), tmp_path
    )
    source = rows(tmp_path / "a.jsonl", 120)
    whole = ss.pack(source, cloud.server.bucket(), storage_options=cloud.to_write(), **SMALL)
    proxy = proxy_to(cloud.server, latency=0.01)
    killed = 0
    for kill_at in kills:
        url = cloud.server.bucket()
        proxy.reset_counts()
        child = subprocess.Popen([sys.executable, "-c", PACKS], stdin=subprocess.PIPE, text=True)
        assert child.stdin is not None
        child.stdin.write(json.dumps([source, url, cloud.options(proxy.url)]))
        child.stdin.close()
        while child.poll() is None:
            writes = sum(
                count for (method, _), count in proxy.counts.paths.items() if method in ("PUT", "POST")
            )
            if writes >= kill_at:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        child.wait(200)
        store = Store.open(url, cloud.to_write())
        if store.exists("manifest.json"):
            assert ss.verify(url, deep=True, storage_options=cloud.options()).sound
        again = ss.pack(source, url, resume=True, storage_options=cloud.to_write(), **SMALL)
        assert again.fingerprint == whole.fingerprint
        assert not [name for name in store.list() if "claim" in name]
        killed += child.returncode == -signal.SIGKILL
        if child.returncode == 0:
            break
    assert killed > 1


@pytest.mark.parametrize("faults_of", [1, pytest.param(len(FAULTS), marks=pytest.mark.long)])
@pytest.mark.parametrize("server", ["azurite", "gcs"])
def test_no_secret_is_told(
    server: str,
    faults_of: int,
    request: pytest.FixtureRequest,
    proxy_to: Callable[..., Any],
    tmp_path: Path,
) -> None:
    cloud = request.getfixturevalue(server)
    secret = f"{CANARY}{CANARY}"
    places = []
    for faults in FAULTS[:faults_of]:
        proxy = proxy_to(cloud)
        proxy.set(only=lambda method, path: True, **faults)
        if server == "gcs":
            options: list[dict[str, Any]] = [
                {"token": {"access_token": secret}, "endpoint_url": proxy.url},
                {"token": secret, "endpoint_url": proxy.url},
            ]
        else:
            options = [{"connection_string": cloud.connection(proxy.url, key=secret)}]
            options += [options[0] | {"max_concurrency": 2}]
            options += [
                {"account_name": cloud.account, "sas_token": f"?sig={secret}", "account_host": proxy.address}
            ]
        places += [(cloud.bucket(), each) for each in options]
    assert said_of(places, tmp_path).count("StorageError") > 8
