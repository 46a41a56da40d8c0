"""Boundaries, padding and best fit, against slow references that look at single documents."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import shardstream as ss
from shardstream.errors import OptionError, StateError
from shardstream.format.manifest import FieldInfo, Manifest
from shardstream.packing.layout import Layout
from shardstream.packing.writer import TokenWriter
from shardstream.storage.store import Store

PAD = 9
Documents = list[list[int]]
# Lengths with many ends of blocks and frames among them, empty documents, and long ones.
LENGTHS = st.lists(
    st.one_of(st.integers(0, 9), st.sampled_from([0, 1, 16, 17, 33, 150])), min_size=1, max_size=40
)
few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(url: Path, lengths: list[int], codec: str, dtype: str, per_shard: int) -> list[Documents]:
    """A dataset whose tokens are all different; returns the documents of each shard."""
    url.mkdir()
    store, shards, found, at = Store.open(str(url)), [], [], 100
    for number, begin in enumerate(range(0, len(lengths), per_shard)):
        some = lengths[begin : begin + per_shard]
        writer = TokenWriter(store, number, Layout(codec=codec, frame_size=160), np.dtype(dtype))
        documents: Documents = []
        for key, length in enumerate(some):
            documents.append(list(range(at, at + length)))
            writer.add_tokens(str(key), np.array(documents[-1], dtype))
            at += length
        shards += writer.close()
        found.append(documents)
    # frame_size is far below shard_size: each writer gives one shard.
    assert len(shards) == len(found)
    field = FieldInfo("tokens", "tokens", dtype)  # type: ignore[arg-type]
    manifest = Manifest.build("tokens", (field,), tuple(shards), {"tokenizer": {"eos": PAD}})
    store.write("manifest.json", manifest.to_bytes())
    return found


def spans(documents: Documents) -> dict[int, int]:
    """token -> number of its document."""
    return {token: number for number, document in enumerate(documents) for token in document}


def check_boundaries(batch: dict[str, Any], owner: dict[int, int]) -> None:
    """The batch's runs are those that a walk over the inputs finds."""
    inputs = batch["tokens"][:, :-1]
    bounds, positions = [], []
    for row in inputs.tolist():
        before: object = None
        for column, token in enumerate(row):
            if column == 0 or owner.get(token) != before:
                bounds.append(len(positions))
                start = len(positions)
            positions.append(len(positions) - start)
            before = owner.get(token)
    bounds.append(len(positions))
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["cu_seqlens"].tolist() == bounds
    assert batch["max_seqlen"] == int(np.diff(bounds).max())
    assert batch["position_ids"].shape == inputs.shape
    assert batch["position_ids"].flatten().tolist() == positions


@few
@given(
    lengths=LENGTHS,
    length=st.sampled_from([1, 2, 7, 16, 100]),
    codec=st.sampled_from(["none", "zstd"]),
    dtype=st.sampled_from(["uint16", "uint32"]),
    tail=st.sampled_from(["drop", "pad"]),
    per_shard=st.sampled_from([1, 7, 100]),
)
def test_blocks_in_a_row_are_the_stream_and_know_their_documents(
    lengths: list[int], length: int, codec: str, dtype: str, tail: str, per_shard: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = write(Path(folder) / "d", lengths, codec, dtype, per_shard)
        needed = length + 1 if tail == "drop" else 2
        if max(sum(map(len, documents)) for documents in shards) < needed:
            with pytest.raises(OptionError, match=rf"seq_len={length} leaves no block: .* {needed} tokens"):
                ss.TokenDataset(Path(folder) / "d", length, tail=tail)
            return
        ds = ss.TokenDataset(Path(folder) / "d", length, tail=tail, boundaries=True)
        batches = list(ss.StreamingLoader(ds, 3, last="short"))
    rows = [row for batch in batches for row in batch["tokens"].tolist()]
    wanted, masks = [], []
    for documents in shards:
        stream = list(itertools.chain(*documents))
        for begin in range(0, len(stream) - 1, length):
            row = stream[begin : begin + length + 1]
            if len(row) == length + 1 or tail == "pad":
                masks.append([column + 1 < len(row) for column in range(length)])
                wanted.append(row + [PAD] * (length + 1 - len(row)))
    assert rows == wanted
    held = {token for row in rows for token in row} - {PAD}
    assert ds.dropped_tokens == sum(lengths) - len(held)
    assert len(ds) == len(wanted)
    owner = spans(list(itertools.chain(*shards)))
    for batch in batches:
        check_boundaries(batch, owner)
    if tail == "pad":
        assert [row for batch in batches for row in batch["mask"].tolist()] == masks
        pads = sum(row.count(PAD) for row in rows)
        assert ds.padding_share == pytest.approx(pads / (len(rows) * (length + 1)) if rows else 0)
    else:
        assert all("mask" not in batch for batch in batches)


@few
@given(
    lengths=LENGTHS,
    length=st.sampled_from([1, 2, 7, 16, 100]),
    codec=st.sampled_from(["none", "zstd"]),
    dtype=st.sampled_from(["uint16", "uint32"]),
    per_shard=st.sampled_from([1, 7, 100]),
    shuffle=st.booleans(),
)
def test_best_fit_has_each_target_once_and_splits_nothing_that_fits(
    lengths: list[int], length: int, codec: str, dtype: str, per_shard: int, shuffle: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = write(Path(folder) / "d", lengths, codec, dtype, per_shard)
        if not sum(lengths):
            with pytest.raises(OptionError, match="leaves no block"):
                ss.TokenDataset(Path(folder) / "d", length, pack="best-fit")
            return
        ds = ss.TokenDataset(Path(folder) / "d", length, pack="best-fit", boundaries=True, shuffle=shuffle)
        batches = list(ss.StreamingLoader(ds, 3, last="short"))
        again = ss.TokenDataset(Path(folder) / "d", length, pack="best-fit", shuffle=shuffle)
        assert [block["tokens"].tolist() for block in again] == [
            row for b in batches for row in b["tokens"][~b["__pad__"]].tolist()
        ]
        single = [ds[number]["tokens"].tolist() for number in range(ds.total)]
    documents = list(itertools.chain(*shards))
    owner = spans(documents)
    rows = [row for batch in batches for row in batch["tokens"].tolist()]
    assert sorted(rows) == sorted(single)
    targets = []
    for batch in batches:
        check_boundaries(batch, owner)
        for row, mask in zip(batch["tokens"].tolist(), batch["mask"].tolist(), strict=True):
            for column, learned in enumerate(mask):
                here, there = owner.get(row[column], -1), owner.get(row[column + 1], -2)
                assert learned == (here == there)
                if learned:
                    assert row[column + 1] == row[column] + 1
                    targets.append(row[column + 1])
    assert sorted(targets) == sorted(token for document in documents for token in document[1:])
    for document in documents:
        if document:
            holding = [row for row in rows if set(document) & set(row)]
            assert len(holding) == max(1, -(-(len(document) - 1) // length))
    pads = sum(row.count(PAD) for row in rows)
    assert ds.padding_share == pytest.approx(pads / (len(rows) * (length + 1)) if rows else 0)
    assert ds.dropped_tokens == 0


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"boundaries": True},
    {"tail": "pad", "boundaries": True},
    {"pack": "best-fit"},
    {"pack": "best-fit", "boundaries": True, "dtype": "int32"},
]


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("codec", "dtype"), [("zstd", "uint16"), ("none", "uint32"), ("none", "uint16")])
def test_save_and_resume_and_every_way_in(
    tmp_path: Path, codec: str, dtype: str, shuffle: bool, options: dict[str, Any]
) -> None:
    lengths = np.random.default_rng(0).integers(0, 60, 120).tolist()
    write(tmp_path / "d", lengths, codec, dtype, 30)

    def dataset() -> ss.TokenDataset:
        return ss.TokenDataset(tmp_path / "d", 32, shuffle=shuffle, **options)

    def rows(batches: Any) -> list[list[int]]:
        return [row for b in batches for row in b["tokens"][~b["__pad__"]].tolist()]

    whole = list(ss.StreamingLoader(dataset(), 4, last="short"))
    wanted = rows(whole)
    assert len(wanted) == dataset().total
    one = ss.StreamingLoader(dataset(), 4, last="short")
    begun = list(itertools.islice(one, 7))
    state = json.loads(json.dumps(one.state_dict()))
    two = ss.StreamingLoader(dataset(), 5, last="short")
    two.load_state_dict(state)
    assert rows(begun) + rows(two) == wanted
    for other in ({"seq_len": 33}, {"pack": "best-fit", "tail": "drop"}, {"pack": None, "tail": "pad"}):
        changed = {"seq_len": 32, "shuffle": shuffle, **options, **other}
        if any(changed[name] != {"seq_len": 32, "tail": "drop", **options}.get(name) for name in other):
            with pytest.raises(StateError, match="in the state and"):
                ss.TokenDataset(tmp_path / "d", **changed).load_state_dict(state)

    assert [block["tokens"].tolist() for block in dataset()] == wanted
    if not shuffle:
        ds = dataset()
        assert [ds[number]["tokens"].tolist() for number in range(ds.total)] == wanted
    loader = DataLoader(dataset(), batch_size=4, num_workers=2, multiprocessing_context="fork")
    found = [row for batch in loader for row in batch["tokens"].tolist()]
    assert sorted(found) == sorted(wanted)


def test_mixed_up_options_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "d", [10, 20], "none", "uint16", 10)
    for options, message in (
        ({"pack": "first-fit"}, "pack='first-fit'"),
        ({"tail": "keep"}, "tail='keep'"),
        ({"pack": "best-fit", "tail": "pad"}, "drops nothing"),
        ({"pad_id": 1 << 16}, "fits uint16"),
        ({"pad_id": -1}, "pad_id=-1"),
        ({"boundaries": 1}, "boundaries=1"),
    ):
        with pytest.raises(OptionError, match=message):
            ss.TokenDataset(tmp_path / "d", 4, **options)
