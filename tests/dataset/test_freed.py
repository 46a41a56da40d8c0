"""A dataset that nobody holds any more is gone: its reader and caches, its threads, maps and descriptors."""

from __future__ import annotations

import gc
import json
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from tests.watch import descriptors, ended

SHUFFLE = ss.Shuffle(lanes=4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": os.urandom(4000).hex()}) + "\n" for _ in range(300)))
    return path


def packed(corpus: Path, dest: str, **options: Any) -> str:
    ss.pack(
        corpus, dest, workers=1, shard_size="1MiB", frame_size="64KiB",
        tokenizer="bytes", eos=256, **options,
    )  # fmt: skip
    return dest


def samples(url: str, cache: Any, options: Any) -> tuple[Any, list[Any]]:
    ds = ss.StreamingDataset(url, shuffle=SHUFFLE, cache=cache, storage_options=options)
    return ds, [ds]


def tokens(url: str, cache: Any, options: Any) -> tuple[Any, list[Any]]:
    ds = ss.TokenDataset(url, seq_len=256, shuffle=SHUFFLE, cache=cache, storage_options=options)
    return ss.StreamingLoader(ds, 8), [ds]


def subset(url: str, cache: Any, options: Any) -> tuple[Any, list[Any]]:
    ds = ss.StreamingDataset(url, shuffle=SHUFFLE, cache=cache, storage_options=options)
    some = ds.subset(numbers=range(0, ds.total, 3))
    return some, [ds, some]


def mixture(url: str, cache: Any, options: Any) -> tuple[Any, list[Any]]:
    parts = [
        ss.StreamingDataset(url, shuffle=SHUFFLE, cache=cache, storage_options=options) for _ in range(2)
    ]
    return ss.StreamingLoader(ss.Mixture([(ds, n + 1) for n, ds in enumerate(parts)]), 8), parts


KINDS = (samples, tokens, subset, mixture)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds soon: threads end a moment after their last task."""

    def collected() -> bool:
        gc.collect()
        return holds()

    return ended(collected)


def use(
    kind: Callable[..., Any], url: str, cache: Any, options: Any = None, dropped: bool = False
) -> list[Any]:
    """Iterate, to the end or half-way; weak references to the readers behind it."""
    source, datasets = kind(url, cache, options)
    refs = [weakref.ref(ds._contents.reader) for ds in datasets]
    for number, _ in enumerate(source):
        if dropped and number == 20:
            break
    return refs


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_readers_are_gone_with_their_datasets(
    kind: Callable[..., Any], dropped: bool, corpus: Path, tmp_path: Path
) -> None:
    url = packed(corpus, f"memory://freed/{corpus.parent.name}")
    for cache in (None, ss.Cache(tmp_path / "cache", disk="1GB", disk_format="raw")):
        refs = use(kind, url, cache, dropped=dropped)
        assert eventually(lambda refs=refs: all(ref() is None for ref in refs))


@pytest.mark.parametrize("backend", ["fsspec-s3", "obstore-s3"])
def test_readers_of_object_stores_are_gone_too(backend: str, corpus: Path, weed: Any) -> None:
    options = weed.options() | ({"config_kwargs": {}} if backend == "fsspec-s3" else {})
    url = packed(corpus, weed.bucket(), storage_options=weed.options())
    for kind in KINDS:
        refs = use(kind, url, None, options, dropped=kind is tokens)
        assert eventually(lambda refs=refs: all(ref() is None for ref in refs))


def test_fifty_datasets_leave_nothing(corpus: Path, tmp_path: Path) -> None:
    url = packed(corpus, f"memory://freed/{corpus.parent.name}", compression="none")

    def some(count: int) -> None:
        for number in range(count):
            cache = None if number % 2 else ss.Cache(tmp_path / "cache", disk="1GB", disk_format="raw")
            use(KINDS[number % len(KINDS)], url, cache, dropped=number % 3 == 0)
            if number % 10 == 9:
                gc.collect()

    def ours() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name.startswith("shardstream")]

    some(12)
    assert eventually(lambda: not ours())
    files, memory = descriptors(), resident()
    some(50)
    assert eventually(lambda: not ours())
    assert eventually(lambda: descriptors() <= files)
    assert resident() - memory < 50 << 20  # each had 2.4 MB in its RAM tier, and more in buffers
