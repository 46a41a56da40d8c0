"""Mixture through the loader: proportions, sources, elastic resume, and states that do not fit."""

from __future__ import annotations

import json
import logging
import pickle
import random
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

import shardstream as ss
from shardstream.errors import OptionError, StateError
from shardstream.format.manifest import Manifest
from tests.corpora import pack_rows


def pack(folder: Path, name: str, count: int, **options: Any) -> Path:
    source = folder / f"{name}.jsonl"
    source.write_text(
        "".join(
            json.dumps({"id": f"{name}-{number}", "text": f"{name} {number} " * (number % 7 + 1)}) + "\n"
            for number in range(count)
        )
    )
    ss.pack(source, folder / name, workers=1, frame_size="256B", shard_size="1KiB", **options)
    return folder / name


@pytest.fixture
def urls(tmp_path: Path) -> tuple[Path, Path]:
    return pack(tmp_path, "code", 70), pack(tmp_path, "web", 110, compression="none")


def mixture(
    urls: tuple[Path, Path], rank: int = 0, size: int = 1, stop: str = "first", **changes: Any
) -> ss.Mixture:
    options = {"weights": (0.5, 0.5), "seed": 1, "lanes": None, "scope": "epoch"} | changes
    shuffle = ss.Shuffle(options["seed"], lanes=options["lanes"], scope=options["scope"])
    ranks = ss.Topology(rank, size)
    parts = [ss.StreamingDataset(url, shuffle=shuffle, topology=ranks) for url in urls]
    return ss.Mixture(list(zip(parts, options["weights"], strict=True)), stop=stop)


def test_an_epoch_until_the_first_is_exhausted(urls: tuple[Path, Path]) -> None:
    mix = mixture(urls)
    epochs = []
    for _ in range(2):
        found = [(sample["__key__"], sample["__source__"]) for sample in mix]
        assert len(found) == len(mix)
        assert all(key.startswith(("code", "web")[source]) for key, source in found)
        keys = [key for key, _ in found]
        assert len(set(keys)) == len(keys)
        assert {key for key in keys if key.startswith("code")} == {f"code-{n}" for n in range(70)}
        epochs.append(keys)
    assert epochs[0] != epochs[1]


def test_until_all_are_exhausted_the_shorter_starts_again_reshuffled(urls: tuple[Path, Path]) -> None:
    found = [sample["__key__"] for sample in mixture(urls, stop="all")]
    assert sorted(key for key in found if key.startswith("web")) == sorted(f"web-{n}" for n in range(110))
    code = [key for key in found if key.startswith("code")]
    assert sorted(code[:70]) == sorted(f"code-{n}" for n in range(70))
    assert len(code) > 70
    assert code[70:] != code[: len(code) - 70]


def test_an_endless_mixture_has_no_length(urls: tuple[Path, Path]) -> None:
    mix = mixture(urls, stop="never", weights=(1, 3))
    loader = ss.StreamingLoader(mix, 8)
    for sized in (mix, loader):
        with pytest.raises(TypeError, match="never ends"):
            len(sized)
    batches = list(islice(loader, 60))
    assert sum(int((batch["__source__"] == 0).sum()) for batch in batches) == pytest.approx(120, abs=2)
    again = ss.StreamingLoader(mixture(urls, stop="never", weights=(1, 3)), 4)
    again.load_state_dict(loader.state_dict())
    assert next(iter(again))["__key__"] == next(islice(loader_from(urls, 8), 60, None))["__key__"][:4]


def loader_from(urls: tuple[Path, Path], batch_size: int) -> Any:
    return iter(ss.StreamingLoader(mixture(urls, stop="never", weights=(1, 3)), batch_size))


def test_not_shuffled_each_dataset_comes_in_its_natural_order(urls: tuple[Path, Path]) -> None:
    code, web = (ss.StreamingDataset(url) for url in urls)
    found = [sample["__key__"] for sample in ss.Mixture({code: 0.25, web: 0.75})]
    assert [key for key in found if key.startswith("web")] == [f"web-{n}" for n in range(110)]
    for count in range(1, len(found) + 1):
        assert abs(sum(key.startswith("web") for key in found[:count]) - 0.75 * count) < 1


@pytest.mark.parametrize("stop", ["first", "all"])
@pytest.mark.parametrize("scope", ["epoch", "lane"])
def test_a_mixture_resumes_with_other_ranks_and_batches(
    urls: tuple[Path, Path], stop: str, scope: str
) -> None:
    def run(size: int, batch_size: int, state: Any, steps: int | None) -> tuple[list[str], Any]:
        keys, states = [], []
        for rank in range(size):
            mix = mixture(urls, rank, size, stop, scope=scope, lanes=None)
            loader = ss.StreamingLoader(mix, batch_size, last="short")
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            for batch in islice(loader, steps):
                pads = batch["__pad__"].tolist()
                keys += [key for key, pad in zip(batch["__key__"], pads, strict=True) if not pad]
            states.append(loader.state_dict())
        assert all(other == states[0] for other in states)
        return keys, states[0]

    whole, _ = run(1, 8, None, None)
    first, state = run(4, 4, None, 3)
    second, state = run(2, 6, state, 4)
    third, _ = run(3, 5, state, None)
    assert sorted(first + second + third) == sorted(whole)


def test_a_state_of_another_mixture_is_refused_with_both_values(urls: tuple[Path, Path]) -> None:
    state = mixture(urls).state_dict()
    for changes, message in (
        ({"weights": (1, 2)}, r"shares\[1\] is 1 in the state and 2 here"),
        ({"seed": 2}, r"datasets\[0\].seed is 1 in the state and 2 here"),
        ({"stop": "all"}, "stop is 'first' in the state and 'all' here"),
        ({"lanes": 8}, "lanes is 64 in the state and 8 here"),
    ):
        with pytest.raises(StateError, match=message):
            mixture(urls, **changes).load_state_dict(state)
    with pytest.raises(StateError, match=r"datasets\[0\].fingerprint"):
        mixture(urls[::-1]).load_state_dict(state)


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_token_blocks_of_several_datasets_make_one_tensor(tmp_path: Path, compression: str) -> None:
    options = {"tokenizer": "bytes", "compression": compression}
    urls = [pack(tmp_path, "a", 90, **options), pack(tmp_path, "b", 200, **options)]
    parts = [ss.TokenDataset(url, 16, shuffle=ss.Shuffle(3)) for url in urls]
    mix = ss.Mixture([(parts[0], 2), (parts[1], 1)], stop="all")
    loader = ss.StreamingLoader(mix, 8, last="pad")
    blocks: list[set[tuple[int, ...]]] = [set(), set()]
    for batch in loader:
        assert batch["tokens"].shape == (8, 17)
        assert batch["tokens"].dtype == torch.int64
        assert batch["__source__"].shape == (8,)
        for row, source in zip(batch["tokens"].tolist(), batch["__source__"].tolist(), strict=True):
            blocks[source].add(tuple(row))
    for url, found in zip(urls, blocks, strict=True):
        assert found == {tuple(block["tokens"].tolist()) for block in ss.TokenDataset(url, 16)}
    one = next(iter(mix))
    assert one["tokens"].shape == (17,)
    assert one["__source__"] in (0, 1)
    lists = ss.StreamingLoader(mix, 4, collate=lambda samples: [sample["__source__"] for sample in samples])
    assert set(next(iter(lists))) <= {0, 1}


def test_what_has_no_common_batch_is_refused_unless_a_transform_makes_it_alike(
    urls: tuple[Path, Path], tmp_path: Path
) -> None:
    def as_block(sample: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": torch.zeros(9, dtype=torch.int64)}

    tokens = pack(tmp_path, "tokens", 90, tokenizer="bytes")
    some = ss.StreamingDataset(urls[0], shuffle=True).subset(numbers=range(5))
    short, long = ss.TokenDataset(tokens, 8, shuffle=True), ss.TokenDataset(tokens, 16)
    with pytest.raises(OptionError, match="mixture of tokens and of samples"):
        ss.Mixture({some: 1, short: 1})
    with pytest.raises(OptionError, match="seq_len is 8 and 16"):
        ss.Mixture({short: 1, long: 2})
    for other, told in (
        (ss.TokenDataset(tokens, 8, dtype="int32"), "dtype is 'int64' and 'int32'"),
        (ss.TokenDataset(tokens, 8, boundaries=True), "boundaries is False and True"),
        (ss.TokenDataset(tokens, 8, pack="best-fit"), "padding"),
    ):
        with pytest.raises(OptionError, match=told):
            ss.Mixture({short: 1, other: 1})
    some = ss.StreamingDataset(urls[0], shuffle=True, transform=as_block)
    cut = ss.TokenDataset(tokens, 16, transform=lambda block: {"tokens": block["tokens"][:9]})
    batch = next(iter(ss.StreamingLoader(ss.Mixture({some: 1, short: 1, cut: 1}), 9)))
    assert batch["tokens"].shape == (9, 9)
    assert sorted(set(batch["__source__"].tolist())) == [0, 1, 2]


def test_a_mixture_sent_to_another_process_goes_on_there(urls: tuple[Path, Path]) -> None:
    mix = mixture(urls)
    began = [sample["__key__"] for sample in islice(mix, 9)]
    again = pickle.loads(pickle.dumps(mix))
    again.load_state_dict(mix.state_dict())
    assert began + [sample["__key__"] for sample in again] == [s["__key__"] for s in mixture(urls)]


def test_bad_mixtures_are_refused(urls: tuple[Path, Path], tmp_path: Path) -> None:
    code, web = (
        ss.StreamingDataset(url, shuffle=ss.Shuffle(lanes=n)) for url, n in zip(urls, (4, 8), strict=True)
    )
    (tmp_path / "none").mkdir()
    none = Manifest.build("samples", code.manifest.fields, (), {})
    (tmp_path / "none" / "manifest.json").write_bytes(none.to_bytes())
    for datasets, options, message in (
        ([], {}, "at least one"),
        ([(code, 1)], {"stop": "later"}, "stop='later'"),
        ([("code", 1)], {}, "'code' is not a StreamingDataset"),
        ([(code, 0)], {}, "weight 0"),
        ([(ss.Mixture({code: 1}), 1)], {}, "is not a StreamingDataset"),
        ([(code, 1), (web, 1)], {}, r"differ in lanes: \[4, 8\]"),
        (
            [(code, 1), (ss.StreamingDataset(urls[1], topology=ss.Topology(1, 2)), 1)],
            {},
            "differ in topology",
        ),
        ([(ss.StreamingDataset(tmp_path / "none"), 1)], {}, "is empty"),
    ):
        with pytest.raises(OptionError, match=message):
            ss.Mixture(datasets, **options)


def test_ranks_that_share_lanes_are_told_once(
    urls: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    loaders = [ss.StreamingLoader(mixture(urls, 0, size, lanes=64), 4) for size in (2, 3)]
    with caplog.at_level(logging.WARNING, "shardstream"):
        for loader in loaders:
            for _ in range(2):
                next(iter(loader))
    assert [record.getMessage() for record in caplog.records] == [caplog.records[0].getMessage()]
    assert "64 lanes do not divide among 3 ranks" in caplog.records[0].getMessage()


def test_mixed_blocks_keep_what_is_said_of_their_documents(tmp_path: Path) -> None:
    for number in range(2):
        texts = "".join(f'{{"text": "{"ab" * (n % 9 + 1)}"}}\n' for n in range(60))
        (tmp_path / f"{number}.jsonl").write_text(texts)
        ss.pack(tmp_path / f"{number}.jsonl", tmp_path / f"t{number}", tokenizer="bytes", eos=256 + number)
    parts = [
        ss.TokenDataset(tmp_path / f"t{number}", seq_len=16, boundaries=True, pack="best-fit", shuffle=True)
        for number in range(2)
    ]
    batches = list(ss.StreamingLoader(ss.Mixture([(parts[0], 1), (parts[1], 1)]), 4))
    for batch in batches:
        assert batch["mask"].shape == batch["position_ids"].shape == (4, 16)
        starts = np.flatnonzero(batch["position_ids"].numpy().ravel() == 0).tolist()
        assert batch["cu_seqlens"].tolist() == [*starts, 64]
        assert batch["max_seqlen"] == max(np.diff([*starts, 64]))
    alone = {tuple(block["tokens"].tolist()): block for part in parts for block in part}
    for block in ss.Mixture([(parts[0], 1), (parts[1], 1)]):
        same = alone[tuple(block["tokens"].tolist())]
        assert block["mask"].tolist() == same["mask"].tolist()
        assert block["position_ids"].tolist() == same["position_ids"].tolist()


def test_what_a_mixture_has_not(urls: tuple[Path, Path]) -> None:
    mix = mixture(urls)
    for name in ("reader", "manifest", "subset"):
        with pytest.raises(OptionError, match=r"mixture has no .*datasets"):
            getattr(mix, name)
        assert not hasattr(mix, name)
    with pytest.raises(OptionError, match=r"mixture.datasets\[0\]\[3\]"):
        mix[3]
    assert repr(mix).startswith("Mixture(")
    assert f"{mix.total} samples, rank 0 of 1" in repr(mix)
    assert "endless, rank 0 of 1" in repr(mixture(urls, stop="never"))


@pytest.mark.parametrize("stop", ["first", "all"])
def test_a_remote_mixture_fetches_as_its_datasets_do(tmp_path: Path, stop: str) -> None:
    rows = [{"id": str(n), "text": random.Random(n).randbytes(1500).hex()} for n in range(900)]
    local = pack_rows(tmp_path, rows, compression="zstd", shard_size="256KiB", frame_size="16KiB")
    memory = fsspec.filesystem("memory")
    memory.put(str(local), f"/{tmp_path.name}", recursive=True)

    def requests(parts: int) -> int:
        shuffle = ss.Shuffle(lanes=8, window=2)
        found = [ss.StreamingDataset(f"memory://{tmp_path.name}", shuffle=shuffle) for _ in range(parts)]
        source = found[0] if parts == 1 else ss.Mixture([(ds, 1) for ds in found], stop)
        assert sum(batch.size for batch in ss.StreamingLoader(source, 10)) >= 890 * parts
        assert sum(ds._contents.reader.counters["remote_bytes"] for ds in found) < 1.1 * parts * size
        return sum(ds._contents.reader.counters["requests"] for ds in found)

    size = sum(path.stat().st_size for path in local.iterdir())
    frames = sum(info.frames for info in ss.StreamingDataset(local).manifest.shards)
    assert requests(2) < 3 * requests(1) < 2 * frames
