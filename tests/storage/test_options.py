"""Retry and Timeouts: what they refuse, and how they come out of `storage_options`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.cli.options import storage_options
from shardstream.errors import OptionError, StorageError
from shardstream.storage.inputs import expand
from shardstream.storage.options import RequestOptions, split_options
from shardstream.storage.store import Store

BAD: list[tuple[type[Any], dict[str, Any]]] = [
    *((ss.Retry, {"attempts": value}) for value in (0, -1, 101, 1.5, "3", True)),
    *((ss.Retry, {name: value}) for name in ("deadline", "pause", "longest_pause") for value in (0, -1.0)),
    *((ss.Retry, {"deadline": value}) for value in ("60", float("nan"), float("inf"), None, True)),
    *((ss.Retry, {"span": value}) for value in (61.0, -1, "8", float("nan"))),
    *((ss.Retry, {"hedge": value}) for value in (1, "no", None)),
    *((ss.Timeouts, {name: value}) for name in ("connect", "read") for value in (0, -1, "5", None)),
    *((ss.Timeouts, {"slowest": value}) for value in (0, -1, "fast", 1.5, None)),
]


@pytest.mark.parametrize(("kind", "bad"), BAD, ids=repr)
def test_a_bad_value_is_named(kind: type[Any], bad: dict[str, Any]) -> None:
    [(name, value)] = bad.items()
    with pytest.raises(OptionError, match=rf"{kind.__name__}: {name}=") as caught:
        kind(**bad)
    assert repr(value) in str(caught.value)
    with pytest.raises(OptionError, match=rf"{kind.__name__}: {name}="):
        split_options({kind.__name__.lower(): bad})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retry": {"attempt": 3}}, "retry has no 'attempt'; it has attempts, deadline"),
        ({"timeouts": {"timeout": 3}}, "timeouts has no 'timeout'; it has connect, read, slowest"),
        ({"retry": 3}, r"retry=3 must be ss.Retry\(...\) or a dict"),
        ({"timeouts": ss.Retry()}, r"timeouts=Retry\(.*must be ss.Timeouts"),
    ],
)
@pytest.mark.parametrize("place", ["memory://x", "folder", "s3://bucket/x"])
def test_what_is_no_such_option_is_said(given: dict[str, Any], said: str, place: str) -> None:
    with pytest.raises(OptionError, match=said):
        Store.open(place, given)


def test_the_defaults_are_those_of_the_documentation() -> None:
    ours, theirs = split_options(None)
    assert (ours, theirs) == (RequestOptions(ss.Retry(), ss.Timeouts()), {})
    assert ours == split_options({"retry": None, "timeouts": {}})[0]
    assert (ours.retry.attempts, ours.retry.deadline, ours.span, ours.timeouts.slowest) == (6, 60, 8, 65536)
    assert (ours.seconds(1 << 20), ours.attempt_seconds(1 << 20)) == (60 + 16, 10 + 16)


def test_they_are_taken_out_of_the_options_of_the_store() -> None:
    given = {"key": "x", "retry": {"attempts": np.int64(3)}, "timeouts": ss.Timeouts(slowest="1MiB")}
    ours, theirs = split_options(given)
    assert theirs == {"key": "x"}
    assert (ours.retry, ours.timeouts) == (ss.Retry(attempts=3), ss.Timeouts(slowest=1 << 20))
    assert "retry" in given  # which is the user's


@given(st.floats(0.001, 1e6))
def test_a_short_deadline_needs_no_span(deadline: float) -> None:
    ours = RequestOptions(ss.Retry(deadline=deadline))
    assert ours.span == min(8, deadline / 2)


def test_the_command_line_has_them_as_json() -> None:
    given = storage_options(
        ['retry={"attempts": 3, "hedge": false}', 'timeouts={"slowest": "1MiB"}', "anon=true"]
    )
    ours, theirs = split_options(given)
    assert ours == (ss.Retry(attempts=3, hedge=False), ss.Timeouts(slowest="1MiB"))
    assert theirs == {"anon": True}


@pytest.mark.parametrize("kind", ["http", "s3", "obstore"])
def test_each_store_has_its_own(kind: str, nginx: Any, weed: Any, proxy_to: Callable[..., Any]) -> None:
    proxy = proxy_to(nginx if kind == "http" else weed, status=(503,), share=1.0)
    url = f"{proxy.url}/none" if kind == "http" else weed.bucket()
    options = {} if kind == "http" else weed.options(proxy.url)
    options |= {"config_kwargs": {}} if kind == "s3" else {}
    retries = [ss.Retry(attempts, pause=0.01, span=0) for attempts in (1, 2, 4)]
    stores = [Store.open(url, options | {"retry": retry}) for retry in retries]
    for store, retry in reversed(list(zip(stores, retries, strict=True))):
        proxy.reset_counts()
        with pytest.raises(StorageError, match=f"tried ({retry.attempts} times|once)"):
            store.read_range("a", 0, 1)
        assert proxy.counts.injected["503"] == retry.attempts
    # Silence, too.
    proxy.set(dead=True)
    timeouts = ss.Timeouts(connect=0.2, read=0.2, slowest="1GB")
    silent = Store.open(url, options | {"retry": ss.Retry(1), "timeouts": timeouts})
    with pytest.raises(StorageError, match=r"no answer in time|connection was lost"):
        silent.read("a")


def test_they_can_be_sent_to_another_process_and_compared() -> None:
    for one in (ss.Retry(attempts=2), ss.Timeouts(read=1, slowest="1k")):
        again = pickle.loads(pickle.dumps(one))
        assert (again, hash(again)) == (one, hash(one))


def test_an_endpoint_without_a_scheme_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        OptionError, match=r"^endpoint_url in storage_options is 'host:9000': it has to begin"
    ):
        Store.open("s3://bucket/a", {"endpoint_url": "user:secret@host:9000", "key": "a", "secret": "b"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(OptionError, match=r"^AWS_ENDPOINT_URL is '127.0.0.1:9000'.* http://127.0.0.1:9000$"):
        Store.open("s3://bucket/a", {"config_kwargs": {}})


@pytest.mark.parametrize(
    "url",
    ["s3://KEY:hidden@bucket/a", "s3://KEY:hid/den@bucket/a", "s3a://KEY@bucket/a", "s3://bucket?x=hidden"],
)
def test_a_url_of_s3_has_the_bucket_alone_in_front(url: str) -> None:
    for open_it in (Store.open, lambda each: expand([each])):
        with pytest.raises(
            OptionError, match=r"^s3a?://bucket(/a)?: .* the bucket alone.*environment"
        ) as told:
            open_it(url)
        assert "hid" not in str(told.value)
        assert "KEY" not in str(told.value)
