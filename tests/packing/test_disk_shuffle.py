"""The global shuffle: one uniform permutation that the seed alone decides, in bounded memory."""

from __future__ import annotations

import collections
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import SourceError, StorageError
from shardstream.packing.disk_shuffle import gather, scatter
from shardstream.packing.sources import Sample
from shardstream.read.reader import DatasetReader

SHARD = 1 << 20
# In memory if the system can: each shuffle syncs its files, and hundreds of them are made here.
MEMORY = next((folder for folder in ("/dev/shm",) if Path(folder).is_dir()), None)


def samples(task: int, count: int) -> list[Sample]:
    return [
        Sample(f"{task}-{n}", {"txt": b"%d" % n * (n % 7), "json": b"{}"} if n % 3 else {}, f"in:{n}")
        for n in range(count)
    ]


def shuffled(
    folder: str, counts: Sequence[int], seed: int, buckets: int, order: Sequence[int] | None = None
) -> list[Sample]:
    """All samples, bucket after bucket; the tasks are scattered in `order`."""
    for task in order or range(len(counts)):
        assert (
            scatter(samples(task, counts[task]), folder, seed, task, buckets, SHARD).samples == counts[task]
        )
    return [item for bucket in range(buckets) for item in gather(folder, seed, bucket, len(counts))]


def keys(counts: Sequence[int], seed: int, buckets: int) -> list[str]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        return [sample.key for sample in shuffled(folder, counts, seed, buckets)]


seeds = st.integers(0, 2**63 - 1)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), seeds, st.integers(1, 9))
@settings(max_examples=40)
def test_a_shuffle_is_a_permutation_of_whole_samples(counts, seed, buckets):
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        found = shuffled(folder, counts, seed, buckets)
    assert sorted(found) == sorted(item for task, count in enumerate(counts) for item in samples(task, count))


@given(st.permutations(range(4)), seeds, st.integers(1, 9))
@settings(max_examples=30)
def test_the_seed_alone_decides_not_the_order_in_which_tasks_end(order, seed, buckets):
    counts = [30, 0, 7, 22]
    with tempfile.TemporaryDirectory(dir=MEMORY) as one, tempfile.TemporaryDirectory(dir=MEMORY) as other:
        assert shuffled(one, counts, seed, buckets) == shuffled(other, counts, seed, buckets, order)


def test_other_seeds_give_other_orders():
    orders = {tuple(keys([20, 20], seed, 3)) for seed in range(40)} | {tuple(keys([20, 20], 2**63 - 1, 3))}
    assert len(orders) == 41


def test_what_comes_later_does_not_change_the_draws_before_it():
    with tempfile.TemporaryDirectory(dir=MEMORY) as one, tempfile.TemporaryDirectory(dir=MEMORY) as other:
        shuffled(one, [5000], 3, 4)
        shuffled(other, [6000], 3, 4)
        for bucket in range(4):
            short = {item.key for item in gather(one, 3, bucket, 1)}
            long = {item.key for item in gather(other, 3, bucket, 1)}
            assert short == {key for key in long if int(key.partition("-")[2]) < 5000}


@pytest.mark.parametrize("buckets", [1, 3])
def test_every_sample_comes_to_every_place_equally_often(buckets):
    places = 8
    seen = collections.Counter(
        (key, place) for seed in range(800) for place, key in enumerate(keys([5, 3], seed, buckets))
    )
    assert len(seen) == places * places
    # 100 each are expected, with a deviation of about 9.4: 50 is more than five of those.
    assert all(abs(count - 100) < 50 for count in seen.values())
    chi = sum((count - 100) ** 2 / 100 for count in seen.values())
    assert chi < 100  # 49 degrees of freedom: 99.99 % lie below 94


def test_neighbours_are_parted():
    order = [int(key.partition("-")[2]) for key in keys([2000], 5, 8)]
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 20
    halves = sum(number < 1000 for number in order[:1000])
    assert 400 < halves < 600


def test_a_bucket_may_be_empty():
    assert sorted(keys([2], 1, 50)) == ["0-0", "0-1"]
    assert keys([0, 0], 1, 3) == []


MEASURE = """
import hashlib, resource, sys
from shardstream.packing.sources import Sample
from shardstream.packing.disk_shuffle import gather, scatter
count, size, buckets = 6000, 1 << 16, 12
def made():
    for number in range(count):
        yield Sample(str(number), {"bin": number.to_bytes(4, "big") * (size // 4)}, "here")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert scatter(made(), sys.argv[1], 1, 0, buckets, 1 << 20) == (count, count * size)
seen = []
for bucket in range(buckets):
    for sample in gather(sys.argv[1], 1, bucket, 1):
        assert sample.fields["bin"] == int(sample.key).to_bytes(4, "big") * (size // 4)
        seen.append(int(sample.key))
assert sorted(seen) == list(range(count))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    spilled = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert spilled > 375 << 20
    assert int(done.stdout) << 10 < 224 << 20


def corrupted(folder: Path, suffix: str, data: bytes) -> None:
    (path,) = folder.glob(f"*{suffix}")
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", [".bin", ".npy"])
def test_a_damaged_spill_is_an_error_that_says_what_to_do(tmp_path, suffix):
    whole = shuffled(str(tmp_path), [50], 1, 2)
    data = next(tmp_path.glob(f"*{suffix}")).read_bytes()
    for size in (0, 1, 60, len(data) // 2, len(data) - 1):
        corrupted(tmp_path, suffix, data[:size])
        with pytest.raises(StorageError, match="pack again without --resume"):
            list(gather(str(tmp_path), 1, 0, 1)) + list(gather(str(tmp_path), 1, 1, 1))
    corrupted(tmp_path, suffix, data)
    assert [item for bucket in range(2) for item in gather(str(tmp_path), 1, bucket, 1)] == whole
    next(tmp_path.glob(f"*{suffix}")).unlink()
    with pytest.raises(StorageError, match="pack again without --resume"):
        list(gather(str(tmp_path), 1, 0, 1))


def test_a_sample_that_is_damaged_is_an_error_that_says_what_to_do(tmp_path):
    shuffled(str(tmp_path), [50], 1, 1)
    data = bytearray(next(tmp_path.glob("*.bin")).read_bytes())
    data[8] = 0xC1  # no value of msgpack begins so
    corrupted(tmp_path, ".bin", bytes(data))
    with pytest.raises(StorageError, match=r"a sample is damaged.*pack again without --resume"):
        list(gather(str(tmp_path), 1, 0, 1))


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "spill-000000.bin").mkdir()
    with pytest.raises(StorageError, match="for the shuffle"):
        scatter(samples(0, 1), str(tmp_path), 0, 0, 1, SHARD)


SIZES = {"frame_size": "1KiB", "shard_size": "4KiB"}


def test_a_shuffled_pack_has_all_samples_and_leaves_no_spill(corpus, tmp_path):
    """That it is the same for any number of workers is in test_packer."""
    ss.pack(corpus, tmp_path / "out", shuffle=11, workers=1, **SIZES)
    assert not list((tmp_path / "out").rglob(".*"))
    natural = [json.loads(line)["id"] for line in corpus.read_text("utf-8").splitlines()]
    found = [key for key, _ in DatasetReader.open(str(tmp_path / "out")).iter_samples()]
    assert found != natural
    assert sorted(found) == sorted(natural)


def test_a_key_that_occurs_twice_is_rejected_where_both_meet(tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id":"a","text":"1"}\n{"id":"a","text":"2"}\n{"id":"b","text":"3"}\n')
    with pytest.raises(SourceError, match=r"twice\.jsonl.*'a' occurs twice"):
        ss.pack(path, tmp_path / "out", shuffle=1, workers=1)
    manifest = ss.pack(path, tmp_path / "skip", shuffle=1, workers=1, on_error="skip")
    assert (manifest.samples, manifest.provenance["rejected"]) == (2, 1)
