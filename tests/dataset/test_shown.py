"""What a notebook sees of datasets and loaders: names in the autocompletion, one line, a small table."""

from __future__ import annotations

import pickle
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import pytest
from torch.utils.data import IterableDataset

import shardstream as ss
from shardstream.read.reader import DatasetReader
from tests.corpora import pack_rows

SECRET = "hunter2"
COMMON = {
    "cache", "endless", "load_state_dict", "set_epoch", "shuffle", "state_dict", "topology", "total", "url",
}  # fmt: skip
SAMPLES = COMMON | {"classes", "decode", "fields", "manifest", "subset", "transform"}
TOKENS = COMMON | {
    "boundaries", "dropped_tokens", "manifest", "pad_id", "padding_share", "seq_len", "subset", "transform",
}  # fmt: skip
MIXTURE = COMMON | {"datasets", "shares", "stop"}
LOADER = {
    "batch_size", "close", "ds", "last", "load_state_dict", "remaining", "set_epoch", "state_dict", "stats",
}  # fmt: skip
DALI = {
    "batch_size", "ds", "last", "load_state_dict", "seed", "set_epoch", "state_dict", "stats",
}  # fmt: skip


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    rows = [{"id": f"s{number:02d}", "text": f"number {number} " * 9} for number in range(20)]
    return pack_rows(tmp_path, rows, shard_size="1KiB", frame_size="512B")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    rows = [{"text": "some words " * 20}] * 6
    folder = tmp_path / "tokens"
    folder.mkdir()
    return pack_rows(folder, rows, tokenizer="bytes", eos=256)


def names(shown: object) -> set[str]:
    """What the autocompletion shows of an object, without what torch brings along."""
    return {name for name in dir(shown) if not name.startswith("_")} - set(dir(IterableDataset))


def test_only_what_is_public_is_completed(packed: Path, tokens: Path) -> None:
    ds, blocks = ss.StreamingDataset(packed), ss.TokenDataset(tokens, 8)
    mixture = ss.Mixture([(ds, 1), (ds.subset(numbers=[1, 2]), 1)])
    loader = ss.StreamingLoader(ds, 2)
    assert names(ds) == names(ds.subset(numbers=[3])) == SAMPLES
    assert names(blocks) == TOKENS
    assert names(mixture) == MIXTURE
    assert names(loader) == LOADER
    # What using them leaves behind is not seen, either.
    for used in (ds, blocks, mixture, loader):
        next(iter(used))
        used.load_state_dict(used.state_dict())
        used.set_epoch(1)
    assert (names(ds), names(blocks), names(mixture), names(loader)) == (SAMPLES, TOKENS, MIXTURE, LOADER)


def test_only_what_is_public_of_a_dali_loader_is_completed(packed: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is an extra of several hundred MB")

    def graph(txt: Any) -> dict[str, Any]:
        return {"txt": txt}

    loader = ss.DaliLoader(ss.StreamingDataset(packed), graph, 2, device="cpu")
    assert names(loader) == DALI
    assert repr(loader).startswith("DaliLoader(StreamingDataset(")
    assert repr(loader).endswith("pipeline=graph, batch_size=2, device='cpu', last='drop')")
    assert "pipeline=graph" in table(loader)["pipeline"]


def test_a_dataset_in_one_line(packed: Path, tokens: Path) -> None:
    ds = ss.StreamingDataset(packed, shuffle=ss.Shuffle(seed=3), topology=ss.Topology(1, 2))
    shards = len(ds.manifest.shards)
    shuffled = f"shuffle={ss.Shuffle(seed=3)!r}"
    assert repr(ds) == (
        f"StreamingDataset({str(packed)!r}, 20 samples, {shards} shards, fields=['txt', 'json'], "
        f"{shuffled}, rank 1 of 2)"
    )
    assert "subset of 3 of 20 samples" in repr(ds.subset(numbers=[1, 2, 5]))
    blocks = ss.TokenDataset(tokens, 8)
    assert repr(blocks) == (
        f"TokenDataset({str(tokens)!r}, {blocks.total} blocks, seq_len=8, 1 shard, shuffle=False, "
        f"rank 0 of 1)"
    )
    plain = ss.StreamingDataset(packed)
    mixture = ss.Mixture([(plain, 3), (plain, 1)], stop="all")
    assert repr(mixture) == (
        f"Mixture({packed}, {packed}, shares=[3, 1], stop='all', {mixture.total} samples, rank 0 of 1)"
    )
    loader = ss.StreamingLoader(plain, 4, last="pad", engine="process")
    assert repr(loader) == f"StreamingLoader({plain!r}, batch_size=4, last='pad', engine='process')"
    assert repr(ss.Cache()) == "Cache()"
    assert repr(ss.Cache("/nvme/cache", disk="200GB")) == "Cache('/nvme/cache', disk='200GB')"
    for shown in (ds, blocks, mixture, loader, ds.manifest):
        assert "\n" not in repr(shown)


def test_a_manifest_in_one_line(packed: Path) -> None:
    manifest = ss.StreamingDataset(packed).manifest
    shown = repr(manifest)
    assert shown.startswith(
        f"Manifest(samples, 20 samples, {len(manifest.shards)} shards, fields=['txt', 'json'], "
    )
    assert shown.endswith(f"fingerprint={manifest.fingerprint[:12]})")


def test_what_is_shown_opens_nothing(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = ss.StreamingDataset(packed)
    mixture = ss.Mixture([(ds, 1)])
    sent = [pickle.loads(pickle.dumps(one)) for one in (ds, mixture, ds.subset(numbers=[1]))]
    shutil.rmtree(packed)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the dataset is opened")

    monkeypatch.setattr(DatasetReader, "open", never)
    for one in sent:
        assert "manifest not loaded" in repr(one)
    assert "subset of 1 samples" in repr(sent[2])
    for one in sent:
        assert table(one)["rank"] == "rank 0 of 1"


def test_a_contradiction_among_launchers_does_not_hide_the_dataset(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = ss.StreamingDataset(packed)
    mixture = ss.Mixture([(ds, 1)])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert repr(ds).endswith("shuffle=False, rank unknown)")
    assert repr(mixture).endswith("samples unknown, rank unknown)")


class Cells(HTMLParser):
    """The cells of a table; fails at any tag that a table does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("table", "caption", "tr", "th", "td")
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1] != "caption":
            self.cells.append(data)


def table(shown: Any) -> dict[str, str]:
    """The rows of what a notebook shows of an object."""
    found = Cells()
    first, end, _ = shown._repr_html_().partition("</table>")  # the first samples have a table of their own
    found.feed(first + end)
    return dict(zip(found.cells[::2], found.cells[1::2], strict=True))


def test_tables_are_escaped_and_hold_what_the_line_says(tmp_path: Path) -> None:
    folder = tmp_path / "<b>bold<br> & co"
    folder.mkdir()
    packed = pack_rows(folder, [{"text": "a"}, {"text": "b"}])
    ds = ss.StreamingDataset(packed)
    assert table(ds)["url"] == str(packed)
    assert table(ds)["samples"] == "2 samples"
    assert table(ss.StreamingLoader(ds, 2))["dataset"] == repr(ds)
    assert table(ss.StreamingLoader(ds, 2))["batch_size"] == "batch_size=2"
    assert table(ds.manifest)["fingerprint"] == ds.manifest.fingerprint
    assert table(ss.Mixture([(ds, 1)]))["dataset 0"] == str(packed)


def test_no_credentials_are_shown(tmp_path: Path) -> None:
    packed = pack_rows(tmp_path, [{"text": "a"}, {"text": "b"}])
    fsspec.filesystem("memory").put(str(packed), f"/user:{SECRET}@shown/data", recursive=True)
    ds = ss.StreamingDataset(f"memory://user:{SECRET}@shown/data", storage_options={"password": SECRET})
    loader = ss.StreamingLoader(ds, 2)
    for one in (ds, ds.subset(numbers=[1]), ss.Mixture([(ds, 1)]), loader, ds.manifest):
        assert SECRET not in repr(one)
        assert SECRET not in one._repr_html_()
    assert "shown/data" in repr(loader)
