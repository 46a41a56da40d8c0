"""URLs: what is local, what is refused, and what of them may be shown."""

from __future__ import annotations

import os
import sys

import fsspec  # noqa: F401 - its registry is looked into
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.errors import OptionError, ShardstreamError
from shardstream.storage.inputs import expand, open_input, read_slice
from shardstream.storage.store import Store, absolute, redact

PARTS = st.text("abcXYZ09-_.~ é", min_size=1, max_size=6)


@given(PARTS, st.text("ab1/?#@:[]é%", max_size=8), PARTS, st.text("ab/@:?#[]", max_size=9), st.booleans())
def test_redacted_urls_hold_no_password_and_no_query(user, noise, host, path, chained):
    url = f"{'simplecache::' * chained}s3://{user}:SECRET{noise}SECRET@{host}/{path}?key=SECRET#SECRET"
    assert "SECRET" not in redact(url)


@given(PARTS, st.text("ab/:[]*{} é", max_size=9))
def test_urls_without_secrets_are_shown_as_they_are(host, path):
    for url in (f"s3://{host}/{path}", f"/{host}/{path}", f"file:///{path}", f"{host}?{path}#{path}"):
        assert redact(url) == url


@given(st.text(), st.text())
def test_any_text_can_be_redacted_and_encoded(left, right):
    for text in (left, f"{left}://{right}", f"s3://{left}{right}", f"a\udcff{right}"):
        redact(text).encode()


def test_local_paths_become_absolute_and_urls_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("a b/é") == str(tmp_path / "a b/é")
    assert absolute("x/../y") == str(tmp_path / "y")
    assert absolute("~/x") == "/home/someone/x"
    assert absolute("file:///data/x") == "/data/x"
    for url in ("s3://bucket/x", "memory://x", "http://host/x?y=1"):
        assert absolute(url) == url


@pytest.mark.parametrize("url", ["pipe:touch {}", "pipe://touch {}", "PIPE://touch {}"])
def test_a_pipe_is_refused_and_nothing_runs(tmp_path, url):
    url = url.format(tmp_path / "ran")
    for attempt in (lambda: expand([url]), lambda: open_input(url).close(), lambda: read_slice(url, 0, 1)):
        with pytest.raises(ShardstreamError):
            attempt()
    with pytest.raises(OptionError, match="pipe: URLs run commands"):
        Store.open("pipe://cat x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("s3://bucket/x", "s3fs", "s3"),
        ("gs://bucket/x", "gcsfs", "gcs"),
        ("abfs://box/x", "adlfs", "azure"),
    ],
)
def test_a_store_whose_package_is_missing_names_the_extra(monkeypatch, url, module, extra):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    for scheme in ("s3", "gs", "abfs"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    for attempt in (Store.open, lambda url: expand([url]), open_input):
        with pytest.raises(OptionError, match=rf"pip install 'shardstream\[{extra}\]'"):
            # A URL of S3 with a user is refused before.
            attempt(url if extra == "s3" else url.replace("://", "://user:SECRET@"))


def test_an_unknown_scheme_is_named():
    with pytest.raises(OptionError, match=r"x/y: no store for nonesuch://") as caught:
        Store.open("nonesuch://user:SECRET@x/y")
    assert "SECRET" not in str(caught.value)
