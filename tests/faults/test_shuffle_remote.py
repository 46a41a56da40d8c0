"""A shuffle through an object store behind a fault proxy: the bytes of a local pack, or a typed error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import StorageError
from shardstream.packing import shuffle_passes, store_shuffle
from shardstream.storage.store import Store

SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB", "shuffle": 3, "workers": 1}
SILENCE = 2.0


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small packs go through the store, too."""
    monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)
    monkeypatch.setattr(shuffle_passes, "MOST_SINGLE", 0)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["s3", "obstore"])
def test_a_shuffle_under_faults_and_behind_a_dead_server(
    weed: Any, proxy_to: Callable[..., Any], corpus: Path, tmp_path: Path, backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = ss.pack(corpus, tmp_path / "whole", **SMALL)
    proxy = proxy_to(weed)
    options = weed.options(proxy.url) | ({"config_kwargs": {}} if backend == "s3" else {})
    options |= {"retry": ss.Retry(deadline=60.0), "timeouts": ss.Timeouts(SILENCE, SILENCE)}
    dest = f"{weed.bucket()}/shuffled-{backend}"

    def dying(*arguments: Any) -> Any:
        proxy.set(dead=True, only=lambda method, path: store_shuffle.FOLDER in path)
        return gather(*arguments)

    gather = store_shuffle.gather
    quick = {**options, "retry": ss.Retry(deadline=4.0)}
    with monkeypatch.context() as patch:
        patch.setattr(store_shuffle, "gather", dying)
        with pytest.raises(StorageError, match=store_shuffle.FOLDER):
            ss.pack(corpus, dest, storage_options=quick, **SMALL)
    proxy.set(status=(500, 503), share=0.2, only=lambda method, path: method in ("GET", "PUT"))
    found = ss.pack(corpus, dest, storage_options=options, resume=True, **SMALL)
    assert proxy.counts.injected
    assert found.shards == whole.shards
    proxy.set()
    store = Store.open(dest, options)
    # SeaweedFS keeps the folder itself.
    assert [name for name in store.list() if name.startswith(".")] in ([], [store_shuffle.FOLDER])
    assert store.list(store_shuffle.FOLDER) == []
