"""A manifest that comes damaged is asked for once more; then the error says what came."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import CorruptionError
from shardstream.storage.store import Store
from tests.corpora import pack_rows

BACKENDS = ["http", "s3", "obstore"]
HTML = b"\n<!DOCTYPE html>\n<html><body>Sign in to the network</body></html>"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = ({"id": f"k{n}", "text": f"row {n}", "number": n} for n in range(50))
    return pack_rows(tmp_path_factory.mktemp("manifests"), rows)


@pytest.fixture(params=BACKENDS)
def site(
    request: pytest.FixtureRequest, nginx: Any, weed: Any, proxy_to: Callable[..., Any], packed: Path
) -> tuple[Any, str, dict[str, Any], Store]:
    """A proxy in front of a dataset, its URL and options, and the store behind."""
    options: dict[str, Any] = {}
    if request.param == "http":
        (nginx.root / "manifests").mkdir(exist_ok=True)
        proxy, direct = proxy_to(nginx), Store.open(str(nginx.root / "manifests"))
        url = f"{proxy.url}/manifests"
    else:
        proxy, url = proxy_to(weed), weed.bucket()
        direct = Store.open(url, weed.options())
        options = weed.options(proxy.url) | ({"config_kwargs": {}} if request.param == "s3" else {})
    for path in packed.iterdir():
        direct.write(path.name, path.read_bytes())
    return proxy, url, options, direct


def test_one_flipped_bit_is_no_end(site: tuple[Any, str, dict[str, Any], Store]) -> None:
    proxy, url, options, _ = site
    count = itertools.count()
    # No cache, so that connections are not opened beforehand: the first request is for the whole manifest.
    proxy.set(flip=1.0, only=lambda method, path: path.endswith("manifest.json") and not next(count))
    assert ss.verify(url, storage_options=options).problems == []
    assert proxy.counts.injected["flip"] == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (HTML, "this is HTML, as a login page or a proxy sends it, not a manifest"),
        (b"<?xml version='1.0'?><Error/>", "this is XML, not a manifest"),
        (b"", "this is an empty file, not a manifest"),
        (b'{"version": 1, "kind": "sam', "JSON of another kind, or damaged, not a manifest"),
        (b'{"name": "config"}', "JSON of another kind, or damaged, not a manifest"),
        (b"\x1f\x8b\x08\xff", "this is something else, not a manifest"),
    ],
)
def test_what_is_no_manifest_is_named(
    site: tuple[Any, str, dict[str, Any], Store], body: bytes, said: str
) -> None:
    proxy, url, options, direct = site
    direct.write("manifest.json", body)
    with pytest.raises(CorruptionError, match=rf"manifest\.json: .*{said}"):
        ss.StreamingDataset(url, storage_options=options)
    whole = [path for path in proxy.counts.paths.elements() if path[1].endswith("manifest.json")]
    assert len(whole) >= 2


def test_a_login_page_is_no_reason_to_read_what_was_kept(
    site: tuple[Any, str, dict[str, Any], Store], tmp_path: Path
) -> None:
    _, url, options, direct = site
    cache = ss.Cache(tmp_path)
    ds = ss.StreamingDataset(url, storage_options=options, cache=cache)
    assert ds._contents.reader.blocks.tiers.disk is not None
    assert ds._contents.reader.blocks.tiers.disk.flush(30)
    direct.write("manifest.json", HTML)
    with pytest.raises(CorruptionError, match="HTML"):
        ss.StreamingDataset(url, storage_options=options, cache=cache)
