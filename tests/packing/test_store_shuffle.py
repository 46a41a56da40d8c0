"""The shuffle through the store: the bytes of the shuffle on a local disk, in bounded memory, cleaned up."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import StorageError
from shardstream.packing import buckets as buckets_module
from shardstream.packing import disk_shuffle, shuffle_passes, store_shuffle
from shardstream.packing.shuffle_passes import grouped
from shardstream.packing.sources import Sample
from shardstream.packing.store_shuffle import FOLDER, Objects
from shardstream.storage.store import Store
from tests.corpora import digests, is_clean, sound
from tests.packing.test_disk_shuffle import MEMORY, samples

SHARD = 1 << 20
SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB"}


def through_store(
    store: Store, counts: Sequence[int], seed: int, buckets: int, group: int, spans: Sequence[tuple[int, int]]
) -> list[tuple[int, list[Sample]]]:
    """The samples of each shard; the last task is scattered first."""
    sizes: dict[int, list[int]] = {}
    for task in reversed(range(len(counts))):
        written, sizes[task] = store_shuffle.scatter(
            samples(task, counts[task]), store, seed, task, buckets, SHARD, group
        )
        assert written.samples == counts[task]
    objects = Objects([sizes[task] for task in range(len(counts))], buckets, group)
    found = []
    for first in range(0, len(spans), group):
        some = spans[first : first + group]
        for number, shard in store_shuffle.gather(store, objects, seed, first, some, None):
            found.append((number, list(shard)))
    return found


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.integers(0, 2**63 - 1),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([1, 700, 1 << 30]),
    st.sampled_from([1, 500, 1 << 30]),
    st.sets(st.integers(1, 11)),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_shard_is_that_of_the_shuffle_on_a_local_disk(
    counts, seed, buckets, group, flush, held, cuts, remote
):
    """For any number of tasks, buckets and writes, for buckets that are joined, and in any kind of store."""
    bounds = [0, *sorted(cut for cut in cuts if cut < buckets), buckets]
    spans = list(itertools.pairwise(bounds))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        patch.setattr(buckets_module, "_FLUSH_LIMIT", flush)
        patch.setattr(store_shuffle, "_HELD", held)
        limit = flush if flush > SHARD else 1  # the size of a shard is a limit, too
        patch.setattr(f"{__name__}.SHARD", limit)
        for task, count in enumerate(counts):
            disk_shuffle.scatter(samples(task, count), f"{folder}/disk", seed, task, buckets, limit)
        whole = [
            list(disk_shuffle.gather(f"{folder}/disk", seed, number, len(counts), span))
            for number, span in enumerate(spans)
        ]
        store = Store.open(f"memory://{folder}/store" if remote else f"{folder}/store")
        found = through_store(store, counts, seed, buckets, group, spans)
    assert found == list(enumerate(whole))


@pytest.mark.parametrize(("tasks", "buckets", "shared", "group"), [
    (1, 1, False, 0), (512, 1024, False, 0), (513, 1024, False, 32), (16_000, 16_000, False, 127),
    (1, 1, True, 1), (64, 64, True, 1), (65, 64, True, 8), (93_000, 93_000, True, 305),
])  # fmt: skip
def test_small_packs_need_no_groups(tasks: int, buckets: int, shared: bool, group: int) -> None:
    assert grouped(tasks, buckets, shared) == group


@pytest.mark.parametrize("options", [{}, {"limit": 37}, {"tokenizer": "bytes", "eos": 256}])
def test_a_pack_through_the_store_has_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    before = ss.pack(corpus, tmp_path / "one", shuffle=3, workers=1, **SMALL, **options)
    assert len(before.shards) > 4
    monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)
    monkeypatch.setattr(shuffle_passes, "MOST_SINGLE", 0)
    for workers in (1, 2):
        dest = tmp_path / f"two{workers}"
        ss.pack(corpus, dest, shuffle=3, workers=workers, **SMALL, **options)
        assert digests(dest) == digests(tmp_path / "one")
        assert is_clean(dest)
    url = f"memory://{tmp_path.name}/out"
    assert ss.pack(corpus, url, shuffle=3, **SMALL, **options).shards == before.shards
    assert sound(url)
    assert not [name for name in Store.open(url).list() if name.startswith(".")]


def test_functions_go_through_the_store_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [ranged] * 3
    ss.pack(calls, tmp_path / "one", shuffle=3, workers=1, **SMALL)
    monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)
    ss.pack(calls, tmp_path / "two", shuffle=3, workers=1, **SMALL)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert is_clean(tmp_path / "two")


def ranged() -> list[dict[str, Any]]:
    return [{"txt": f"sample {n} " * (n % 20)} for n in range(100)]


@pytest.mark.parametrize("stage", ["scatter", "gather"])
def test_a_pack_that_was_killed_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole = ss.pack(corpus, tmp_path / "whole", shuffle=3, workers=1, **SMALL)
    monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)
    monkeypatch.setattr(shuffle_passes, "MOST_SINGLE", 0)
    done, original = 0, getattr(store_shuffle, stage)

    def killed(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    for dest in (str(tmp_path / "out"), f"memory://killed-{stage}/out"):
        done = 0
        with monkeypatch.context() as patch:
            patch.setattr(store_shuffle, stage, killed)
            with pytest.raises(KeyboardInterrupt):
                ss.pack(corpus, dest, shuffle=3, workers=1, **SMALL)
        left = Store.open(f"{dest}/{FOLDER}").list()
        assert left
        assert ss.pack(corpus, dest, shuffle=3, workers=1, resume=True, **SMALL).shards == whole.shards
        assert not [name for name in Store.open(dest).list() if name.startswith(".")]


def test_another_pack_clears_what_was_left(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle_passes, "MOST_ON_DISK", 0)

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_shuffle, "gather", broken)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(corpus, tmp_path / "out", shuffle=3, workers=1, **SMALL)
    assert list(tmp_path.glob(f"out/{FOLDER}/*"))
    ss.pack(corpus, tmp_path / "out", workers=1, **SMALL)
    assert is_clean(tmp_path / "out")


def test_damage_and_loss_are_errors_that_say_what_to_do(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    sizes = [store_shuffle.scatter(samples(0, 300), store, 1, 0, 9, SHARD, 3)[1]]
    objects, spans = Objects(sizes, 9, 3), [(bucket, bucket + 1) for bucket in range(9)]

    def gathered() -> list[Sample]:
        return [
            each for _, shard in store_shuffle.gather(store, objects, 1, 0, spans, None) for each in shard
        ]

    assert len(gathered()) == 300
    (path,) = tmp_path.glob(f"{FOLDER}/*")
    data = path.read_bytes()
    for at in (4, len(data) // 2, len(data) - 36):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
        with pytest.raises(StorageError, match="pack again without --resume"):
            gathered()
    path.write_bytes(data[:100])
    with pytest.raises(StorageError, match="do not exist"):
        gathered()
    path.unlink()
    with pytest.raises(StorageError, match=r"missing; pack again without --resume"):
        gathered()


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_shuffle, "_HELD", 1)
    store = Store.open(str(tmp_path))
    sizes = [store_shuffle.scatter(samples(0, 300), store, 1, 0, 9, SHARD, 3)[1]]
    with open("/dev/full", "r+b", buffering=0) as full:  # noqa: SIM117
        with monkeypatch.context() as patch:
            patch.setattr(store_shuffle.tempfile, "TemporaryFile", lambda **_: full)
            with pytest.raises(StorageError, match="No space left"):
                list(store_shuffle.gather(store, Objects(sizes, 9, 3), 1, 0, [(0, 1), (1, 2)], str(tmp_path)))
