"""StreamingLoader: equal batches on all ranks, nothing left behind, errors where they belong."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import OptionError


@pytest.fixture
def packed(corpus: Path, tmp_path: Path) -> Path:
    ss.pack(corpus, tmp_path / "packed", workers=1, frame_size="4KiB", shard_size="16KiB")
    return tmp_path / "packed"


def loader(url: Path, batch_size: int, rank: int = 0, size: int = 1, **options: Any) -> ss.StreamingLoader:
    ds = ss.StreamingDataset(url, shuffle=ss.Shuffle(1), topology=ss.Topology(rank, size))
    return ss.StreamingLoader(ds, batch_size, **options)


@pytest.mark.parametrize("last", ["drop", "pad", "short"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 9, 60])
def test_all_ranks_get_equally_many_batches_and_each_sample_once(
    packed: Path, last: str, size: int, batch_size: int
) -> None:
    if last == "drop" and batch_size * size > 100:
        with pytest.warns(UserWarning, match="an epoch has no batch"):
            assert len(loader(packed, batch_size, size=size, last=last)) == 0
        return
    seen: list[str] = []
    for rank in range(size):
        one = loader(packed, batch_size, rank, size, last=last)
        batches = list(one)
        whole, rest = divmod(100, batch_size * size)
        assert len(batches) == len(one) == whole + (rest > 0 and last != "drop")
        for batch in batches:
            pads = batch["__pad__"].tolist() if last != "drop" else [False] * len(batch["__key__"])
            seen += [key for key, pad in zip(batch["__key__"], pads, strict=True) if not pad]
    assert (
        len(seen)
        == len(set(seen))
        == (100 if last != "drop" else 100 // (batch_size * size) * batch_size * size)
    )


@pytest.mark.parametrize("last", ["drop", "pad", "short"])
def test_remaining_batches_are_those_that_come(packed: Path, last: str) -> None:
    one = loader(packed, 9, size=2, last=last)
    count = len(one)
    assert one.remaining == count
    for number, _ in enumerate(one, 1):
        # The last batch ends the epoch only when the loop asks for another one.
        assert one.remaining == count - number
        if number == 3:
            state = one.state_dict()
    assert one.remaining == count  # of the next epoch
    other = loader(packed, 9, size=2, last=last)
    other.load_state_dict(state)
    assert other.remaining == count - 3 == len(list(other))


def test_each_epoch_has_its_own_order_and_set_epoch_gives_it_again(packed: Path) -> None:
    one = loader(packed, 10)
    epochs = [[key for batch in one for key in batch["__key__"]] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    one.set_epoch(0)
    assert [key for batch in one for key in batch["__key__"]] == epochs[0]


def test_each_batch_has_marks_of_its_own(packed: Path) -> None:
    loader = ss.StreamingLoader(ss.StreamingDataset(packed), batch_size=7, last="short")
    for batch in loader:
        assert not batch["__pad__"].any()
        batch["__pad__"][:] = True


def test_dropped_iterators_leave_no_threads_and_no_files(packed: Path) -> None:
    one = loader(packed, 3)
    list(one)  # a dataset keeps the shards that it has read mapped
    gc.collect()

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("shardstream")]

    before = open_files()
    for _ in range(200):
        for number, _ in enumerate(one):
            if number == 2:
                break
    gc.collect()
    deadline = time.monotonic() + 90
    while ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not ours()
    assert open_files() <= before


def test_more_shards_than_a_process_may_have_files_open(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("".join(f'{{"text": "{number:0100d}"}}\n' for number in range(200)))
    ss.pack(tmp_path / "c.jsonl", tmp_path / "many", workers=1, frame_size=100, shard_size=100)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150));"
        "import shardstream as ss; ds = ss.StreamingDataset(sys.argv[1], shuffle=True);"
        "print(len(ds.manifest.shards), len(list(ss.StreamingLoader(ds, 10))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "many")], capture_output=True, text=True, timeout=250
    )
    assert done.stdout.split() == ["200", "20"], done.stderr


def test_the_error_of_a_transform_is_raised_at_the_consumer(packed: Path) -> None:
    def refuse(sample: dict[str, Any]) -> Any:
        raise LookupError(f"cannot use {sample['__key__']}")

    ds = ss.StreamingDataset(packed, transform=refuse)
    with pytest.raises(LookupError, match="cannot use doc-000"):
        next(iter(ss.StreamingLoader(ds, 4)))


def test_stats_count_what_was_delivered(packed: Path) -> None:
    one = loader(packed, 10, collate=len)
    assert list(one) == [10] * 10
    stats = one.stats()
    assert (stats["batches"], stats["samples"]) == (10, 100)
    assert stats["frames"] > 1
    assert stats["bytes_read"] > 10_000


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": True},
        {"last": "other"},
        {"threads": 0},
        {"engine": "other"},
        {"prefetch": "x"},
    ],
    ids=str,
)
def test_bad_options_are_refused_with_their_value(packed: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        loader(packed, **{"batch_size": 4, **options})
