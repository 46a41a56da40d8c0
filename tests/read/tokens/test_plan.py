"""Blocks of tokens: every token where arithmetic says, whatever the codec, the frames and the length."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardstream as ss
from shardstream.errors import CorruptionError, OptionError, StateError
from shardstream.read.reader import DatasetReader

CASES = [("zstd", 256), ("none", 256), ("zstd", 70_000), ("none", 70_000)]


@pytest.fixture(params=CASES, ids=[f"{codec}-{eos}" for codec, eos in CASES])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """About 60,000 tokens in frames of 4 KiB, uint16 or uint32 by the size of the largest."""
    codec, eos = request.param
    rng = np.random.default_rng(0)
    with (tmp_path / "c.jsonl").open("w") as file:
        for number in range(200):
            text = bytes(rng.integers(97, 123, int(rng.integers(0, 600))).astype(np.uint8)).decode()
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    options: dict[str, Any] = {"tokenizer": "bytes", "eos": eos, "compression": codec, "workers": 1}
    ss.pack(tmp_path / "c.jsonl", tmp_path / "packed", frame_size="4KiB", shard_size="24KiB", **options)
    return tmp_path / "packed"


def streams(url: Path) -> list[np.ndarray]:
    """The tokens of each shard, by the documents that the reader gives."""
    reader = DatasetReader.open(str(url))
    dtype, number, found = reader.manifest.fields[0].dtype, 0, []
    samples = list(reader.iter_samples())
    for shard in reader.manifest.shards:
        mine = samples[number : number + shard.samples]
        found.append(np.concatenate([np.frombuffer(fields["tokens"], dtype) for _, fields in mine]))
        number += shard.samples
    return found


def expected(url: Path, length: int) -> list[list[int]]:
    return [
        tokens[block * length : block * length + length + 1].tolist()
        for tokens in streams(url)
        for block in range((len(tokens) - 1) // length)
    ]


def test_tokens_of_16_bits_can_stay_as_they_are(packed: Path) -> None:
    if DatasetReader.open(str(packed)).manifest.fields[0].dtype != "uint16":
        with pytest.raises(OptionError, match=r"too narrow .* are uint32; choose 'int32' or 'int64'"):
            ss.TokenDataset(packed, seq_len=300, dtype="uint16")
        return
    ds = ss.TokenDataset(packed, seq_len=300, dtype="uint16", shuffle=True, tail="pad")
    wide = ss.TokenDataset(packed, seq_len=300, shuffle=True, tail="pad")
    pairs = zip(*(ss.StreamingLoader(each, 16, last="pad") for each in (ds, wide)), strict=True)
    for narrow, batch in pairs:
        assert narrow["tokens"].dtype == torch.uint16
        assert (narrow["tokens"].long() == batch["tokens"]).all()
        assert (narrow["mask"] == batch["mask"]).all()


@pytest.mark.parametrize("length", [1, 7, 300, 5_000])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_blocks_follow_one_another_across_frames(packed: Path, length: int, dtype: str) -> None:
    ds = ss.TokenDataset(packed, seq_len=length, dtype=dtype)
    wanted = expected(packed, length)
    loader = ss.StreamingLoader(ds, batch_size=16, last="short")
    found: list[list[int]] = []
    for batch in loader:
        assert str(batch["tokens"].dtype) == f"torch.{dtype}"
        found += batch["tokens"].tolist()
    assert found == wanted
    assert ds.total == len(ds) == len(wanted)
    assert ds[len(wanted) // 2]["tokens"].tolist() == wanted[len(wanted) // 2]
    everything = sum(map(len, streams(packed)))
    shards = sum(len(tokens) > length for tokens in streams(packed))
    assert everything - ds.dropped_tokens == len(wanted) * length + shards


def test_an_epoch_of_shuffled_blocks_has_each_once_for_any_number_of_ranks(packed: Path) -> None:
    wanted = sorted(expected(packed, 300))
    batches = []
    for size in (1, 2, 4):
        ranks = []
        for rank in range(size):
            ds = ss.TokenDataset(
                packed, 300, shuffle=ss.Shuffle(3, lanes=4), topology=ss.Topology(rank, size)
            )
            loader = ss.StreamingLoader(ds, batch_size=8 // size, last="short")
            rows = [b["tokens"][~b["__pad__"]].tolist() for b in loader]
            ranks.append(rows)
        batches.append([sorted(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)])
    assert batches[0] == batches[1] == batches[2]
    in_order = list(itertools.chain(*batches[0]))
    assert sorted(in_order) == wanted
    assert in_order != wanted


def test_a_transform_sees_single_blocks(packed: Path) -> None:
    ds = ss.TokenDataset(packed, 300, transform=lambda block: {"first": int(block["tokens"][0])})
    found = [value for batch in ss.StreamingLoader(ds, 8, last="short") for value in batch["first"].tolist()]
    assert found == [block[0] for block in expected(packed, 300)]


def test_resume_goes_on_with_the_next_block(packed: Path) -> None:
    def loader(batch_size: int) -> ss.StreamingLoader:
        return ss.StreamingLoader(ss.TokenDataset(packed, 300, shuffle=True), batch_size, last="short")

    one, found = loader(8), []
    for number, batch in enumerate(one):
        found += batch["tokens"].tolist()
        if number == 4:
            break
    state = json.loads(json.dumps(one.state_dict()))
    two = loader(3)
    two.load_state_dict(state)
    for batch in two:
        found += batch["tokens"][~batch["__pad__"]].tolist()
    assert sorted(found) == sorted(expected(packed, 300))
    with pytest.raises(StateError, match="seq_len is 300 in the state and 299 here"):
        ss.StreamingLoader(ss.TokenDataset(packed, 299, shuffle=True), 8).load_state_dict(state)


def test_a_damaged_frame_is_named(packed: Path) -> None:
    shard = sorted(packed.glob("shard-*.tar*"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptionError, match=rf"{shard.name}, frame \d+"):
        list(ss.StreamingLoader(ss.TokenDataset(packed, 300), 8))


def test_batches_are_not_overwritten_while_they_are_held(packed: Path) -> None:
    loader = ss.StreamingLoader(ss.TokenDataset(packed, 7, shuffle=True), batch_size=64)
    for _ in range(3):
        held = [(batch["tokens"], batch["tokens"].clone()) for batch in loader]
        assert all((kept == copy).all() for kept, copy in held)


def test_bad_options_are_refused(packed: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="seq_len"):
        ss.TokenDataset(packed, 0)
    with pytest.raises(OptionError, match="dtype"):
        ss.TokenDataset(packed, 8, dtype="int16")
    ss.pack(corpus, tmp_path / "text", workers=1)
    with pytest.raises(OptionError, match="holds no tokens"):
        ss.TokenDataset(tmp_path / "text", 8)
