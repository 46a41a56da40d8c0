"""`shuffle` for samples and functions of Python: one permutation of all, which the seed decides."""

from __future__ import annotations

import functools
import gc
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import OptionError
from shardstream.packing import disk_shuffle
from shardstream.packing.disk_shuffle import FINE, joined
from shardstream.read.reader import DatasetReader
from tests.corpora import digests, is_clean

SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB"}


def samples(first: int = 0, end: int = 300) -> list[dict[str, Any]]:
    return [{"__key__": f"{n:04d}", "txt": f"sample {n} " * (n % 20)} for n in range(first, end)]


def stored(dest: Path) -> list[tuple[str, bytes]]:
    return [(key, bytes(fields["txt"])) for key, fields in DatasetReader.open(str(dest)).iter_samples()]


def in_order(end: int = 300) -> list[tuple[str, bytes]]:
    return [(sample["__key__"], sample["txt"].encode()) for sample in samples(0, end)]


def test_an_iterable_is_permuted_by_the_seed_alone(tmp_path: Path) -> None:
    for name, seed, workers in (("a", 1, 1), ("b", 1, 3), ("c", 2, 2)):
        manifest = ss.pack(iter(samples()), tmp_path / name, shuffle=seed, workers=workers, **SMALL)
        assert len(manifest.shards) > 5
        assert sorted(stored(tmp_path / name)) == in_order()
        assert is_clean(tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len({tuple(stored(tmp_path / name)) for name in "abc"} | {tuple(in_order())}) == 3


def test_functions_are_permuted_over_all_of_them(tmp_path: Path) -> None:
    calls = [functools.partial(samples, n, n + 100) for n in range(0, 300, 100)]
    for workers in (1, 2):
        ss.pack(calls, tmp_path / str(workers), shuffle=5, workers=workers, **SMALL)
        assert is_clean(tmp_path / str(workers))
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    found = stored(tmp_path / "1")
    assert sorted(found) == in_order()
    # Each of the three thirds is over the whole dataset.
    for third in "012":
        places = [place for place, (key, _) in enumerate(found) if int(key) // 100 == int(third)]
        assert min(places) < 60
        assert max(places) > 240


def test_parts_are_permuted_each_by_itself(tmp_path: Path) -> None:
    for rank in range(2):
        with ss.Writer(tmp_path / "out", part=(rank, 2), shuffle=5, **SMALL) as writer:
            for sample in samples(rank * 150, rank * 150 + 150):
                writer.write(sample)
            assert writer.samples == 150
    ss.commit(tmp_path / "out")
    found = stored(tmp_path / "out")
    assert sorted(found) == in_order()
    assert sorted(found[:150]) == in_order(150)
    assert found[:150] != in_order(150)
    assert is_clean(tmp_path / "out")


def test_a_writer_that_was_left_is_resumed_with_the_same_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ss.pack(samples(), tmp_path / "whole", shuffle=5, **SMALL)

    def write(rows: list[dict[str, Any]], resume: bool) -> None:
        with ss.Writer(tmp_path / "out", shuffle=5, resume=resume, **SMALL) as writer:
            for sample in rows:
                writer.write(sample)

    whole, given = disk_shuffle.gather, 0

    def broken(*arguments: Any) -> Iterator[Any]:
        nonlocal given
        for sample in whole(*arguments):
            given += 1
            if given > 200:
                raise KeyboardInterrupt
            yield sample

    with monkeypatch.context() as patch:
        patch.setattr(disk_shuffle, "gather", broken)
        with pytest.raises(KeyboardInterrupt):
            write(samples(), False)
    assert not list(tmp_path.glob("out/.spill/**/*.bin"))
    shards = {path.name: path.stat().st_ino for path in tmp_path.glob("out/shard-*")}
    assert len(shards) > 3
    with pytest.raises(OptionError, match="samples have changed"):
        write([{**sample, "txt": "other"} for sample in samples()], True)
    write(samples(), True)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert all((tmp_path / "out" / name).stat().st_ino == inode for name, inode in shards.items())


def test_bad_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"__key__": "a", "txt": "1"},
        {"__key__": "a", "txt": "2"},
        {"txt": None},
        {"__key__": "b", "txt": "3"},
    ]
    manifest = ss.pack(rows, tmp_path / "out", shuffle=1, on_error="skip")
    assert (manifest.samples, manifest.provenance["rejected"]) == (2, 2)
    rejects = (tmp_path / "out" / "rejects.jsonl").read_text()
    assert "'a' occurs twice" in rejects
    assert "sample 2" in rejects


def test_a_dropped_writer_leaves_no_spill(tmp_path: Path) -> None:
    writer = ss.Writer(tmp_path / "out", shuffle=1)
    writer.write({"txt": "a"})
    assert list(tmp_path.glob("out/.spill/**/*.bin"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del writer
        gc.collect()
    assert [one.category for one in caught] == [ResourceWarning]
    assert not list(tmp_path.glob("out/.spill/**/*.bin"))


@pytest.mark.parametrize("seed", [-1, 2**63, "a"])
def test_a_bad_seed_is_refused(tmp_path: Path, seed: Any) -> None:
    with pytest.raises(OptionError, match="shuffle"):
        ss.Writer(tmp_path / "out", shuffle=seed)
    assert not list(tmp_path.glob("out/*.json"))


def test_buckets_of_unknown_sizes_are_joined_to_about_a_shard() -> None:
    for size in (0, 1, 99, 100, 101, 12_345, 10**9):
        spans = joined(size, 100)
        assert (spans[0][0], spans[-1][1]) == (0, FINE)
        assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
        assert all(first < end for first, end in spans)
        assert len(spans) == min(FINE, max(1, -(-size // 100)))
