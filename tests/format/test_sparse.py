"""Sparse indexes: the same answers as a table, in the space of what is there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import CorruptionError
from shardstream.format.index import ShardIndex
from shardstream.format.rows import index_bytes, is_sparse
from shardstream.format.sparse import SparseTable
from shardstream.read.reader import DatasetReader

pytestmark = pytest.mark.filterwarnings("ignore:the dataset has")


def table(dense: np.ndarray) -> SparseTable:
    there = dense >= 0
    bounds = np.concatenate(([0], np.cumsum(there.sum(axis=1))))
    return SparseTable(bounds, np.nonzero(there)[1].astype(np.int32), dense[there], dense.shape[1], -1)


@given(st.integers(0, 9), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_it_answers_as_an_array_does(rows, columns, random):
    dense = np.array(
        [[random.randrange(-1, 3) for _ in range(columns)] for _ in range(rows)], np.int32
    ).reshape(rows, columns)
    sparse = table(dense)
    np.testing.assert_array_equal(np.asarray(sparse), dense)
    assert (sparse.shape, sparse.dtype) == (dense.shape, dense.dtype)
    picked = np.array([random.randrange(rows) for _ in range(4 * bool(rows))], np.int64)
    wanted = np.array([random.randrange(columns) for _ in range(3)], np.int64)
    for at in (
        slice(1, 4), picked, (picked[:, None], wanted), (slice(None), columns - 1), (picked, columns - 1),
        (slice(0, 2), slice(0, 1)),
    ):  # fmt: skip
        np.testing.assert_array_equal(sparse[at], dense[at])
    for row in range(rows):
        np.testing.assert_array_equal(sparse[row], dense[row])
        assert sparse[row, 0] == dense[row, 0]
    names = [f"f{column}" for column in range(columns)]
    order = ["new", *reversed(names[1:])]
    moved = np.asarray(table(dense).with_columns(names, order))
    assert (moved[:, 0] == -1).all()
    for place, name in enumerate(order[1:], 1):
        np.testing.assert_array_equal(moved[:, place], dense[:, names.index(name)])


def archive(path: Path, count: int) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            for field in ("txt", f"f{number}"):
                info = tarfile.TarInfo(f"{number:05d}.{field}")
                info.size = 5
                tar.addfile(info, io.BytesIO(b"%05d" % number))
    return path


@pytest.mark.parametrize("run", [ss.pack, ss.index])
def test_an_index_does_not_grow_with_fields_and_samples(tmp_path, run):
    count = 400
    manifest = run(archive(tmp_path / "in.tar", count), tmp_path / "out", workers=1)
    (shard,) = manifest.shards
    assert (manifest.version, shard.sparse, len(manifest.fields)) == (2, True, count + 1)
    assert shard.index_bytes < 100 * count  # a table has 8 * count * count bytes
    assert ss.verify(str(tmp_path / "out"), deep=True).sound
    reader = DatasetReader.open(str(tmp_path / "out"))
    assert reader.index(0).nbytes < 150 * count
    wanted = [
        (f"{n:05d}", {"txt": b"%05d" % n, f"f{n}": b"%05d" % n}) for n in range(count)
    ]  # fmt: skip
    assert list(reader.iter_samples()) == wanted
    dataset = ss.StreamingDataset(str(tmp_path / "out"), decode=False, fields=["txt", "f7"])
    texts = [bytes(text) for batch in ss.StreamingLoader(dataset, 64, last="short") for text in batch["txt"]]
    assert sorted(texts) == [b"%05d" % n for n in range(count)]
    some = dataset.subset(where=lambda columns: columns.has["f7"])
    assert len(some) == 1


def test_only_large_and_empty_tables_are_sparse(tmp_path):
    assert not is_sparse(1000, 2, 2000)
    assert not is_sparse(100, 100, 100)
    assert is_sparse(1000, 1000, 1000)
    manifest = ss.pack(archive(tmp_path / "in.tar", 100), tmp_path / "out", workers=1)
    assert (manifest.version, manifest.shards[0].sparse) == (1, False)


def damaged(change: str) -> bytes:
    samples = 400
    cells = [(n, n, 512, 5) for n in range(samples)]
    if change == "field":
        cells[3] = (3, samples, 512, 5)
    elif change == "order":
        cells[3] = (2, 2, 512, 5)
    elif change == "size":
        cells[3] = (3, 3, 512, 1 << 20)
    elif change == "negative":
        cells[3] = (3, 3, -1, 5)
    frames = [(0, 2048, 0, 2048, 0, 1)]
    data = bytearray(index_bytes(frames, cells, [b"%03d" % n for n in range(samples)], samples))
    return bytes(data)


@pytest.mark.parametrize("change", ["none", "field", "order", "size", "negative"])
def test_damage_is_named(change):
    def load() -> ShardIndex:
        return ShardIndex.from_bytes(
            damaged(change), where="x", fields=400, samples=400, frames=1, shard_bytes=2048, raw_bytes=2048
        )

    if change == "none":
        assert load().field_size[7, 7] == 5
    else:
        with pytest.raises(CorruptionError, match="field"):
            load()
