"""Subsets of tokens: blocks of the chosen documents alone, exact and resumable like any other dataset."""

from __future__ import annotations

import itertools
import json
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import OptionError, StateError
from shardstream.format.manifest import FieldInfo, Manifest
from shardstream.packing.layout import Layout
from shardstream.packing.writer import TokenWriter
from shardstream.storage.store import Store
from tests.corpora import pack_rows

PAD = 9


def write(
    url: Path, shards: list[list[list[int]]], codec: Literal["none", "zstd"] = "zstd", frame: int = 160
) -> Path:
    """The dataset of these documents; document d of all has the key "d" and the column n = d."""
    url.mkdir()
    store, infos, number = Store.open(str(url)), [], itertools.count()
    for shard, documents in enumerate(shards):
        writer = TokenWriter(store, shard, Layout(codec=codec, frame_size=frame), np.dtype("uint16"))
        for document in documents:
            n = next(number)
            writer.add_tokens(str(n), np.array(document, "u2"), {"n": n, "odd": n % 2 == 1})
        infos += writer.close()
    assert len(infos) == len(shards)
    field = FieldInfo("tokens", "tokens", "uint16")
    store.write(
        "manifest.json",
        Manifest.build("tokens", (field,), tuple(infos), {"tokenizer": {"eos": PAD}}).to_bytes(),
    )
    return url


def documents(lengths: list[int], per_shard: int) -> list[list[list[int]]]:
    """Documents whose tokens are all different, by shard."""
    at, found = 100, []
    for length in lengths:
        found.append(list(range(at, at + length)))
        at += length
    return [found[begin : begin + per_shard] for begin in range(0, len(found), per_shard)]


def stream(shards: list[list[list[int]]], length: int, tail: str) -> list[list[int]]:
    """The blocks that the documents make, one after another."""
    rows = []
    for some in shards:
        tokens = list(itertools.chain(*some))
        for begin in range(0, len(tokens) - 1, length):
            row = tokens[begin : begin + length + 1]
            if len(row) == length + 1 or tail == "pad":
                rows.append(row + [PAD] * (length + 1 - len(row)))
    return rows


def rows(batches: Any) -> list[list[int]]:
    return [row for b in batches for row in b["tokens"][~b["__pad__"]].tolist()]


LENGTHS = st.lists(st.integers(0, 9) | st.sampled_from([16, 33, 150]), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    lengths=LENGTHS,
    length=st.sampled_from([1, 2, 7, 16, 100]),
    codec=st.sampled_from(["none", "zstd"]),
    tail=st.sampled_from(["drop", "pad"]),
    per_shard=st.sampled_from([1, 7, 100]),
)
def test_blocks_are_the_stream_of_the_chosen_documents(
    data: st.DataObject, lengths: list[int], length: int, codec: Any, tail: Any, per_shard: int
) -> None:
    shards = documents(lengths, per_shard)
    whole = list(itertools.chain(*shards))
    numbers = sorted(data.draw(st.sets(st.integers(0, len(whole) - 1), min_size=1)))
    chosen = {number: whole[number] for number in numbers}
    some = [
        [d for n, d in enumerate(group, shard * per_shard) if n in chosen]
        for shard, group in enumerate(shards)
    ]
    wanted = stream(some, length, tail)
    with tempfile.TemporaryDirectory() as folder:
        url = write(Path(folder) / "d", shards, codec)
        options: dict[str, Any] = {"tail": tail, "boundaries": True}
        if not stream(shards, length, tail):
            return
        ds = ss.TokenDataset(url, length, **options)
        if not wanted:
            with pytest.raises(OptionError, match="leaves no block"):
                ds.subset(numbers=numbers)
            return
        few = ds.subset(numbers=numbers)
        assert few.total == len(wanted)
        assert rows(ss.StreamingLoader(few, 3, last="short")) == wanted
        assert [few[n]["tokens"].tolist() for n in range(len(wanted))] == wanted
        held = {token for row in wanted for token in row} - {PAD}
        assert few.dropped_tokens == sum(map(len, chosen.values())) - len(held)
        # As if only these had been packed, down to the bounds of documents.
        alone = write(Path(folder) / "alone", [group for group in some if group], codec)
        pairs = zip(
            ss.StreamingLoader(few, 3, last="short"),
            ss.StreamingLoader(ss.TokenDataset(alone, length, **options), 3, last="short"),
            strict=True,
        )
        for mine, other in pairs:
            assert mine.keys() == other.keys()
            for name in mine:
                assert np.array_equal(np.asarray(mine[name]), np.asarray(other[name])), name
        shuffled = ss.TokenDataset(url, length, shuffle=ss.Shuffle(3, window=2), tail=tail).subset(
            numbers=numbers
        )
        assert sorted(rows(ss.StreamingLoader(shuffled, 2, last="short"))) == sorted(wanted)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), lengths=LENGTHS, length=st.sampled_from([1, 7, 100]), shuffle=st.booleans())
def test_best_fit_has_the_chosen_documents_whole(
    data: st.DataObject, lengths: list[int], length: int, shuffle: bool
) -> None:
    shards = documents(lengths, 7)
    whole = list(itertools.chain(*shards))
    numbers = sorted(data.draw(st.sets(st.integers(0, len(whole) - 1), min_size=1)))
    chosen = [whole[number] for number in numbers if whole[number]]
    with tempfile.TemporaryDirectory() as folder:
        url = write(Path(folder) / "d", shards)
        if not chosen:
            return
        ds = ss.TokenDataset(url, length, pack="best-fit", shuffle=shuffle).subset(numbers=numbers)
        found = rows(ss.StreamingLoader(ds, 3, last="short"))
    assert {token for row in found for token in row} - {PAD} == set(itertools.chain(*chosen))
    for document in chosen:
        if len(document) <= length + 1:
            (row,) = [row for row in found if document[0] in row]
            at = row.index(document[0])
            assert row[at : at + len(document)] == document


@pytest.fixture
def corpus60(tmp_path: Path) -> Path:
    lengths = np.random.default_rng(0).integers(0, 60, 120).tolist()
    return write(tmp_path / "d", documents(lengths, 30))


CHOICES: list[dict[str, Any]] = [
    {"keys": [str(n) for n in range(1, 120, 3)]},
    {"numbers": range(1, 120, 3)},
    {"where": lambda c: c["n"] % 3 == 1},
    {"where": lambda c: c.number % 3 == 1},
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: next(iter(choice)))
def test_every_way_to_choose_is_the_same_dataset(corpus60: Path, choice: dict[str, Any]) -> None:
    ds = ss.TokenDataset(corpus60, 32, shuffle=True)
    one, other = ds.subset(**choice), ds.subset(numbers=np.arange(1, 120, 3))
    assert one.state_dict() == other.state_dict()
    assert [b["tokens"].tolist() for b in one] == [b["tokens"].tolist() for b in other]
    assert "subset of 40 of 120 documents" in repr(one)
    smaller = one.subset(where=lambda c: c["odd"])
    same = ds.subset(where=lambda c: (c["n"] % 3 == 1) & c["odd"])
    assert rows(ss.StreamingLoader(smaller, 2, last="short")) == rows(
        ss.StreamingLoader(same, 2, last="short")
    )


@pytest.mark.parametrize("options", [{}, {"tail": "pad", "boundaries": True}, {"pack": "best-fit"}], ids=str)
@pytest.mark.parametrize("shuffle", [False, ss.Shuffle(3, window=2, lanes=4)], ids=["natural", "shuffled"])
def test_save_and_resume_with_any_number_of_ranks(
    corpus60: Path, options: dict[str, Any], shuffle: Any
) -> None:
    def dataset(rank: int = 0, ranks: int = 1) -> Any:
        place = ss.Topology(dp_rank=rank, dp_size=ranks)
        ds = ss.TokenDataset(corpus60, 16, shuffle=shuffle, topology=place, **options)
        return ds.subset(where=lambda c: c["n"] % 3 != 0)

    whole = rows(ss.StreamingLoader(dataset(), 4, last="short"))
    assert len(whole) == dataset().total > 30
    begun = ss.StreamingLoader(dataset(), 4, last="short")
    first = rows(itertools.islice(begun, 5))
    state = json.loads(json.dumps(begun.state_dict()))
    assert first == whole[:20]
    for ranks in (1, 2, 4):
        parts = []
        for rank in range(ranks):
            loader = ss.StreamingLoader(dataset(rank, ranks), 4 // ranks, last="short")
            loader.load_state_dict(state)
            parts.append([rows([batch]) for batch in loader])
        merged = [sorted(itertools.chain(*some)) for some in zip(*parts, strict=True)]
        rest = [sorted(whole[at : at + 4]) for at in range(20, len(whole), 4)]
        assert merged == rest
    ds = ss.TokenDataset(corpus60, 16, shuffle=shuffle, **options)
    with pytest.raises(StateError, match="subset-"):
        ds.load_state_dict(state)
    with pytest.raises(StateError, match="subset-"):
        ds.subset(where=lambda c: c["n"] % 3 == 0).load_state_dict(state)


def test_a_hold_out_and_the_rest_are_all(corpus60: Path) -> None:
    ds = ss.TokenDataset(corpus60, 1, tail="pad", shuffle=True)
    held, rest = ds.subset(where=lambda c: c["n"] % 10 == 0), ds.subset(where=lambda c: c["n"] % 10 != 0)

    def tokens(some: Any) -> set[int]:
        return {token for block in some for token in block["tokens"].tolist()} - {PAD}

    assert not tokens(held) & tokens(rest)
    assert tokens(held) | tokens(rest) == tokens(ds)


def test_subsets_in_mixtures_and_in_other_processes(corpus60: Path) -> None:
    ds = ss.TokenDataset(corpus60, 16, shuffle=ss.Shuffle(3, lanes=2))
    odd, even = ds.subset(where=lambda c: c["odd"]), ds.subset(where=lambda c: ~c["odd"])
    mix = ss.Mixture([(odd, 1), (even, 1)], stop="all")
    loader = ss.StreamingLoader(mix, 4, last="short")
    batches = list(itertools.islice(loader, 5))
    again = ss.StreamingLoader(mix, 4, last="short")
    again.load_state_dict(loader.state_dict())
    both = batches + list(again)
    for number, part in enumerate((odd, even)):
        wanted = {tuple(row) for row in rows(ss.StreamingLoader(part, 4, last="short"))}
        found = {
            tuple(row)
            for batch in both
            for row, source, padded in zip(
                batch["tokens"].tolist(), batch["__source__"].tolist(), batch["__pad__"].tolist(), strict=True
            )
            if source == number and not padded
        }
        assert found == wanted
    sent = pickle.loads(pickle.dumps(odd.subset(numbers=range(20))))
    assert [b["tokens"].tolist() for b in sent] == [
        b["tokens"].tolist() for b in odd.subset(numbers=range(20))
    ]
    process = ss.StreamingLoader(ds.subset(numbers=range(0, 120, 7)), 2, last="short", engine="process")
    thread = ss.StreamingLoader(ds.subset(numbers=range(0, 120, 7)), 2, last="short")
    assert rows(process) == rows(thread)
    process.close()


def test_frames_without_chosen_documents_are_not_read(corpus60: Path, tmp_path: Path) -> None:
    cache = ss.Cache(tmp_path / "cache", always=True)
    ds = ss.TokenDataset(corpus60, 4, shuffle=True, cache=cache).subset(numbers=[5, 6, 64])
    loader = ss.StreamingLoader(ds, 2, last="short")
    assert len(rows(loader)) == ds.total
    assert loader.stats()["frames"] <= 3
    # Frames are written behind the loader.
    until, frames = time.monotonic() + 30, list[Path]()
    while not frames and time.monotonic() < until:
        frames = [path for path in (tmp_path / "cache").rglob("*") if path.name.isdigit()]
    assert 0 < len(frames) <= 3
    report = ss.warm(ds)
    assert report.missing == 0


@pytest.mark.parametrize("raw", [False, True])
def test_a_cache_gives_the_same_blocks(corpus60: Path, tmp_path: Path, raw: bool) -> None:
    def found(cache: Any) -> list[list[int]]:
        ds = ss.TokenDataset(corpus60, 16, shuffle=ss.Shuffle(1), cache=cache)
        return rows(ss.StreamingLoader(ds.subset(where=lambda c: c["n"] % 4 == 1), 4, last="short"))

    cache = ss.Cache(tmp_path / "cache", always=True, disk_format="raw" if raw else "stored")
    assert found(cache) == found(None) == found(cache)


def test_what_leaves_no_block_says_so(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": "abc", "lang": "en"} for n in range(5)]
    url = pack_rows(tmp_path, rows, tokenizer="bytes", eos=0, keep=["lang"])
    with pytest.raises(
        OptionError, match=r"seq_len=64 leaves no block: a block needs 65 tokens .* 20 at most"
    ):
        ss.TokenDataset(url, 64)
    assert ss.TokenDataset(url, 64, tail="pad").total == 1
    ds = ss.TokenDataset(url, 8)
    with pytest.raises(OptionError, match="the chosen documents of a shard have 8 at most"):
        ds.subset(numbers=[0, 1])
    with pytest.raises(OptionError, match="where= chooses none of the 5 samples"):
        ds.subset(where=lambda c: c["lang"] == "de")


def test_a_hold_out_equals_what_packing_it_gives(tmp_path: Path) -> None:
    """With the packer itself: the blocks of a subset are those of a dataset of only these rows."""
    rng = np.random.default_rng(5)
    texts = ["".join(map(chr, rng.integers(97, 120, rng.integers(0, 90)))) for _ in range(200)]
    rows_ = [{"id": str(n), "text": text, "lang": "ed"[n % 2]} for n, text in enumerate(texts)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    options: dict[str, Any] = {"tokenizer": "bytes", "eos": 0, "keep": ["lang"], "frame_size": "1KiB"}
    both = pack_rows(tmp_path / "a", rows_, **options)
    alone = pack_rows(tmp_path / "b", [row for row in rows_ if row["lang"] == "d"], **options)
    for more in ({}, {"tail": "pad"}):
        ds = ss.TokenDataset(both, 50, **more).subset(where=lambda c: c["lang"] == "d")
        wanted = ss.TokenDataset(alone, 50, **more)
        assert [b["tokens"].tolist() for b in ds] == [b["tokens"].tolist() for b in wanted]
        assert ds.dropped_tokens == wanted.dropped_tokens


def test_a_state_goes_on_after_an_append(tmp_path: Path) -> None:
    """The cache has the manifest of before, of which the same documents are chosen again."""

    def source(name: str, count: int) -> Path:
        (tmp_path / name).write_text(
            "".join(json.dumps({"id": f"{name}{n}", "text": "ab" * n, "n": n}) + "\n" for n in range(count))
        )
        return tmp_path / name

    options: dict[str, Any] = {"tokenizer": "bytes", "keep": ["n"], "workers": 1, "format": "jsonl"}
    ss.pack(source("a", 40), tmp_path / "d", **options)

    def loader() -> ss.StreamingLoader[Any]:
        cache = ss.Cache(tmp_path / "cache", always=True)
        ds = ss.TokenDataset(tmp_path / "d", 16, shuffle=ss.Shuffle(1), cache=cache)
        return ss.StreamingLoader(ds.subset(where=lambda c: c["n"] % 2 == 0), 2, last="short")

    wanted = rows(loader())
    begun = loader()
    first = rows(itertools.islice(begun, 4))
    ss.pack(source("b", 20), tmp_path / "d", append=True, **options)
    assert len(rows(loader())) > len(wanted)
    again = loader()
    again.load_state_dict(begun.state_dict())
    assert first + rows(again) == wanted
