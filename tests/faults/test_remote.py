"""Remote stores under faults: real servers behind a fault proxy; the oracle is the SHA-256 of each frame."""

from __future__ import annotations

import multiprocessing
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import ShardstreamError, StorageError
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache
from shardstream.storage.inputs import read_slice
from shardstream.storage.store import Store
from tests.cachefill import digest_of
from tests.faults.conftest import Target
from tests.servers import KEY, SECRET
from tests.watch import ended

BACKENDS = ["http", "s3", "obstore"]
# As in production, but that a server which says nothing is given up sooner, and that no request is failed by
# chance: if a fifth of the tries fail, six in a row do for one request of 16,000.
SILENCE = 2.0
QUICK: dict[str, Any] = {
    "retry": ss.Retry(attempts=12, deadline=60.0), "timeouts": ss.Timeouts(SILENCE, SILENCE),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest) -> None:
    # In the long run machines stand still for longer than that, too.
    if request.node.get_closest_marker("long") is None and "target" in request.fixturenames:
        request.getfixturevalue("target").options.update(QUICK)


@pytest.fixture(scope="module")
def digest(packed: Path) -> str:
    return digest_of(DatasetReader.open(str(packed)))


def read_all(reader: DatasetReader) -> str:
    """The digest of all frames, fetched ahead by many threads."""
    shards = enumerate(reader.manifest.shards)
    frames = [(shard, frame) for shard, info in shards for frame in range(info.frames)]
    reader.fetch_indexes_ahead(list(range(len(reader.manifest.shards))))
    reader.ahead.fetch(frames)
    return digest_of(reader)


# So many requests are made that some fail six times in a row by chance, about one of 16,000.
TIMES = [1, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]


def read_often(target: Target, digest: str, times: int) -> int:
    """Reads all so often, each time with a new reader; returns how many retries there were."""
    retries = given_up = 0
    for _ in range(times):
        reader = target.open()
        try:
            assert read_all(reader) == digest
        except StorageError as error:
            given_up += 1
            assert re.search(r"shard-.*tried 6 times", str(error))  # noqa: PT017
        retries += reader.counters["retries"]
    injected = {kind: number for kind, number in target.proxy.counts.injected.items() if number}
    print(f"{target.proxy.counts.requests} requests, {injected}, {retries} retries, {given_up} given up")
    assert given_up <= times // 10
    return retries


# Who heeds Retry-After waits a second each time. S3 sends none.
LATER = [("http", "1"), *(pytest.param(kind, "1", marks=pytest.mark.long) for kind in ("s3", "obstore"))]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(
    ("target", "retry_after"), [*((kind, None) for kind in BACKENDS), *LATER], indirect=["target"]
)
def test_a_fifth_of_errors(target: Target, digest: str, retry_after: str | None, times: int) -> None:
    target.set(status=(500, 502, 503, 504, 429), share=0.2, retry_after=retry_after)
    assert read_often(target, digest, times) > 0


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("fault", ["reset", "cut"])
def test_a_tenth_of_answers_that_break_off(target: Target, digest: str, fault: str, times: int) -> None:
    target.set(**{fault: 0.1 if times > 1 else 0.2})
    read_often(target, digest, times)
    assert target.proxy.counts.injected[fault] > 0


def test_stalled_connections_are_dropped(target: Target, digest: str) -> None:
    target.set(stall=0.05)
    started = time.monotonic()
    assert read_all(target.open()) == digest
    assert target.proxy.counts.injected["stall"] > 0
    assert time.monotonic() - started < 6 * SILENCE + 60  # a hang would be one of minutes


def test_a_server_that_ignores_ranges(target: Target, digest: str) -> None:
    target.set(ignore_range=True)
    try:
        assert read_all(target.open()) == digest
    except StorageError as error:
        assert "shard-" in str(error)  # noqa: PT017
    assert target.proxy.counts.injected["ignore_range"] > 0


def test_answers_of_a_wrong_length_are_an_error(target: Target) -> None:
    target.options["retry"] = ss.Retry(pause=0.05, span=0.0)
    reader = target.open()
    target.set(extra=7)
    with pytest.raises(StorageError, match=r"shard-000000.*tried 6 times"):
        reader.frame(0, 0)
    # On a machine that stands still, some are sent twice.
    assert 6 <= target.proxy.counts.injected["extra"] <= 6 + reader.counters["hedges"]


def test_a_shard_that_is_replaced_while_it_is_read(target: Target, packed: Path) -> None:
    reader = target.open()
    reader.frame(3, 0)
    name = reader.manifest.shards[3].url
    data = (packed / name).read_bytes()
    target.replace(name, data[:-100] + bytes(100))
    with pytest.raises(
        StorageError, match=rf"{name}: it was replaced while it was read: open the dataset again"
    ):
        reader.frame(3, 1)


def test_only_an_answer_416_is_taken_for_one(target: Target) -> None:
    target.options["retry"] = {"attempts": 3, "pause": 0.05, "span": 0.0}
    target.replace("shard-416", b"0123456789")
    store = Store.open(target.url, target.options)
    assert store.read_range("shard-416", 8, 2) == b"89"
    target.set(status=(503,), share=1.0)
    with pytest.raises(StorageError, match=r"overloaded.*tried 3 times"):
        store.read_range("shard-416", 8, 2)


LONG = pytest.mark.long
ONE_AND_ALL = ["http", pytest.param("s3", marks=LONG), pytest.param("obstore", marks=LONG)]


@pytest.mark.parametrize("target", ONE_AND_ALL, indirect=True)
def test_a_server_that_is_gone_for_a_while(target: Target, digest: str) -> None:
    reader = target.open()
    target.set(latency=0.01)
    target.proxy.down()

    def come_back() -> None:
        assert ended(lambda: reader.counters["retries"] > 0)
        time.sleep(2)
        target.proxy.up()

    back = threading.Thread(target=come_back)
    back.start()
    assert read_all(reader) == digest
    back.join()


@pytest.mark.parametrize("seconds", [1.0, pytest.param(5.0, marks=LONG)])
def test_what_was_fetched_keeps_flowing_while_the_server_is_gone(target: Target, seconds: float) -> None:
    reader = target.open()
    expected = [key for key, _ in reader.iter_samples()]
    shards = len(reader.manifest.shards)
    # The second half is not answered for before the server goes: otherwise a quick one would give all of it.
    late = [f"shard-{shard:06}.tar" for shard in range(shards // 2, shards)]
    proxy = target.proxy
    proxy.set(dead=True, only=lambda method, path: any(name in path for name in late))
    ds = ss.StreamingDataset(target.url, decode=False, storage_options=target.options)
    batches = iter(ss.StreamingLoader(ds, 10))
    keys = [key for _ in range(6) for key in next(batches)["__key__"]]
    # What the next batches read is here before the server goes, however busy the machine is.
    fetched, frames = ds._contents.reader.ahead.fetched, [info.frames for info in ds.manifest.shards]
    assert ended(lambda: all(fetched(shard, frames[shard]).all() for shard in range(shards // 4)), 60)
    proxy.down()
    keys += next(batches)["__key__"]
    back: list[float] = []

    def up() -> None:
        back.append(time.monotonic())
        proxy.set()
        proxy.up()

    timer = threading.Timer(seconds, up)
    timer.start()
    flowing, waited = 1, 0.0
    for batch in batches:
        if not back:
            flowing += 1
        elif not waited:
            waited = time.monotonic() - back[0]
        keys += batch["__key__"]
    timer.join()
    print(f"{flowing} batches without the server, the next one {waited:.1f} s after it was back")
    assert keys == expected
    assert waited


def test_a_dead_server_is_a_typed_error_at_the_deadline(target: Target) -> None:
    target.options |= {"retry": ss.Retry(deadline=4.0, span=0.0), "timeouts": ss.Timeouts(1.0, 1.0)}
    reader = target.open()
    target.set(dead=True)
    reader.ahead.fetch([(0, 0), (1, 0)])
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"no answer in time \(tried \d+ times? in \d+\.\d s\)"):
        reader.frame(0, 0)
    assert time.monotonic() - started < 100


def test_permanent_errors_are_not_tried_again(target: Target) -> None:
    reader = target.open()
    for status in (403, 404, 400):
        target.proxy.reset_counts()
        target.set(status=(status,), share=1.0)
        with pytest.raises(StorageError, match=f"shard-000000.*{status}"):
            reader.index(0)
        assert 1 <= target.proxy.counts.injected[str(status)] <= 1 + reader.counters["hedges"]


@pytest.mark.parametrize("target", ["http"], indirect=True)  # S3 sends none, and obstore does not tell it
def test_retry_after_beyond_the_deadline_ends_it_at_once(target: Target) -> None:
    reader = target.open()
    target.set(status=(503,), share=1.0, retry_after="3600")
    with pytest.raises(StorageError, match="it asks to wait 3600 s"):
        reader.index(0)
    assert 1 <= target.proxy.counts.injected["503"] <= 1 + reader.counters["hedges"]


# Processes


def read_in_child(url: str, options: dict[str, Any], queue: Any) -> None:
    try:
        reader = DatasetReader.open(url, options, Cache(ram=1000))
        queue.put((digest_of(reader), reader.counters["backend"]))
    except BaseException as error:
        queue.put((repr(error), ""))


def use_in_child(reader: DatasetReader, queue: Any) -> None:
    try:
        queue.put((digest_of(reader), reader.counters["backend"]))
    except BaseException as error:
        queue.put((repr(error), ""))


# A forkserver's child starts as a spawned one does; obstore alone cannot be used after a fork.
STARTS = [
    pytest.param(
        kind, method, marks=LONG if (kind, method) in (("s3", "spawn"), ("obstore", "forkserver")) else ()
    )
    for kind in BACKENDS
    for method in ("fork", "spawn", "forkserver")
]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("target", "method"), STARTS, indirect=["target"])
def test_children_read_after_their_parent_did(target: Target, digest: str, method: str, times: int) -> None:
    context = multiprocessing.get_context(method)
    reader = target.open()
    reader.frame(0, 0)
    backend = reader.counters["backend"]
    for _ in range(times):
        queue = context.Queue()
        child = context.Process(target=read_in_child, args=(target.url, target.options, queue))
        child.start()
        found, used = queue.get(timeout=240)
        child.join(120)
        assert (found, child.exitcode) == (digest, 0)
        assert used == (backend if method != "fork" or backend != "obstore-s3" else "fsspec-s3")
        if method == "fork":  # the very reader that the parent has used
            child = context.Process(target=use_in_child, args=(reader, queue))
            child.start()
            assert queue.get(timeout=240)[0] == digest
            child.join(120)
            assert child.exitcode == 0
    assert read_all(reader) == digest


# What errors say, and what they must not


def failing(attempts: list[Callable[[], object]]) -> list[BaseException]:
    found: list[BaseException] = []
    for attempt in attempts:
        with pytest.raises(ShardstreamError) as caught:
            attempt()
        found.append(caught.value)
    return found


def test_what_is_wrong_with_a_bucket_or_its_credentials_is_said(
    weed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for more in ({}, {"config_kwargs": {}}):
        good = weed.options() | more | {"retry": ss.Retry(span=0.2, pause=0.02)}
        url = weed.bucket()
        Store.open(url, weed.options() | {"config_kwargs": {}}).write("manifest.json", b"{}")
        cases = [
            ("s3://no-such-bucket-here/x", good, "no such bucket"),
            (url, good | {"secret": "wrong-secret"}, "credentials are refused"),
            (url, good | {"key": "nobody-knows"}, "credentials are refused"),
            (url + "/nothing", good, "no dataset here"),
            (
                url,
                good | {"endpoint_url": "http://nonesuch.invalid"},
                "host is not known|was lost",
            ),
        ]
        for place, options, said in cases:
            with pytest.raises(StorageError, match=said) as caught:
                DatasetReader.open(place, options)
            assert place in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match=r"no credentials were found.*storage_options"):
        DatasetReader.open(url, {"endpoint_url": weed.url, "config_kwargs": {"user_agent_extra": "x"}})


def test_credentials_and_endpoints_of_the_environment(
    weed: Any, packed: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = weed.bucket()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", weed.url)
    for options in ({}, {"config_kwargs": {"user_agent_extra": "y"}}):
        store = Store.open(url, options)
        store.write("a", b"data")
        assert store.read("a") == b"data"
        assert store.backend == ("fsspec-s3" if options else "obstore-s3")
    # A token that is not of the keys that were given.
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-other-keys")
    assert Store.open(url, weed.options()).read("a") == b"data"


@pytest.mark.parametrize("backend", BACKENDS)
def test_proxies_of_the_environment(
    backend: str, nginx: Any, weed: Any, proxy_to: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = proxy_to(nginx if backend == "http" else weed)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if backend == "http":
        (nginx.root / "through").write_bytes(b"data")
        assert read_slice(f"{nginx.url}/through", 1, 2) == b"at"
    else:
        # A client of its own: others have been made without the proxy.
        options = weed.options(f"http://127.0.0.1:{weed.port}/")
        options |= {"config_kwargs": {"user_agent_extra": "z"}} if backend == "s3" else {}
        store = Store.open(weed.bucket(), options)
        store.write("through", b"data")
        assert store.read_range("through", 1, 2) == b"at"
    assert proxy.counts.requests > 0
