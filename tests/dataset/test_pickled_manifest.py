"""A dataset that is sent to another process is the same dataset there, whatever its store has by then."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import shardstream as ss
from shardstream.errors import StorageError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def write(path: Path, name: str, count: int) -> Path:
    with path.open("w") as file:
        for number in range(count):
            text = hashlib.sha512(f"{name}{number}".encode()).hexdigest()
            file.write(json.dumps({"id": f"{name}{number:03d}", "text": text}) + "\n")
    return path


def pack(folder: Path, name: str = "a", count: int = 40, **options: Any) -> Path:
    """A dataset of several shards; more of them with append=True."""
    source = write(folder / f"{name}.jsonl", name, count)
    ss.pack(source, folder / "data", workers=1, shard_size="2KiB", frame_size="1KiB", **options)
    return folder / "data"


def keys(items: Any) -> list[str]:
    return [item["__key__"] for item in items]


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_is_appended_shows_in_no_copy(tmp_path: Path, shuffle: bool) -> None:
    url = pack(tmp_path)
    wanted = keys(ss.StreamingDataset(url, shuffle=shuffle))
    ds = ss.StreamingDataset(url, shuffle=shuffle)
    sent = pickle.dumps(ds)
    fingerprint = ds.manifest.fingerprint
    pack(tmp_path, "b", append=True)
    assert len(ss.StreamingDataset(url)) == 2 * len(wanted)
    for other in (pickle.loads(sent), pickle.loads(pickle.dumps(ds)), copy.deepcopy(ds)):
        assert other.manifest.fingerprint == fingerprint
        assert other.state_dict()["fingerprint"] == fingerprint
        assert len(other) == len(wanted)
        assert keys(other) == wanted
    assert keys(DataLoader(copy.deepcopy(ds), batch_size=None, num_workers=2)) == wanted
    mixture = pickle.loads(pickle.dumps(ss.Mixture([(copy.deepcopy(ds), 1)])))
    assert sorted(keys(mixture)) == sorted(wanted)
    assert (
        keys(pickle.loads(pickle.dumps(ds.subset(numbers=range(5)))))
        == [key for key in wanted if key < "a005"]
        or shuffle
    )


def test_another_process_reads_what_was_opened(tmp_path: Path) -> None:
    url = pack(tmp_path)
    ds = ss.StreamingDataset(url, shuffle=True)
    wanted = [batch["__key__"] for batch in ss.StreamingLoader(copy.deepcopy(ds), 8)]
    beside = ss.StreamingLoader(copy.deepcopy(ds), 8, engine="process")
    pack(tmp_path, "b", append=True)
    assert [batch["__key__"] for batch in beside] == wanted


@pytest.mark.long
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_read_what_was_opened(tmp_path: Path, method: str) -> None:
    url = pack(tmp_path)
    ds = ss.StreamingDataset(url, shuffle=True)
    wanted = keys(copy.deepcopy(ds))
    pack(tmp_path, "b", append=True)
    loader = DataLoader(ds, batch_size=None, num_workers=2, multiprocessing_context=method)
    assert keys(loader) == wanted


def test_a_replaced_dataset_is_refused_and_both_fingerprints_are_named(tmp_path: Path) -> None:
    url = pack(tmp_path)
    ds = ss.StreamingDataset(url)
    before = ds.manifest.fingerprint
    sent = pickle.dumps(ds)
    shutil.rmtree(url)
    pack(tmp_path, "b")
    after = ss.StreamingDataset(url).manifest.fingerprint
    assert before != after
    other = pickle.loads(sent)
    with pytest.raises(StorageError, match=f"(?s){before}.*{after}"):
        keys(other)
    with pytest.raises(StorageError, match=f"(?s){before}.*{after}"):
        keys(ds)


def test_a_pickle_is_small(tmp_path: Path) -> None:
    url = pack(tmp_path, count=600)
    ds = ss.StreamingDataset(url)
    shards = len(ds.manifest.shards)
    assert shards > 20
    assert len(pickle.dumps(ds)) < 4096 + 200 * shards
