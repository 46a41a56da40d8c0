"""One epoch after the other: the next one's first frames are in memory before it begins, and no more."""

from __future__ import annotations

import gc
import io
import os
import random
import tarfile
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.dataset import contents_of
from shardstream.errors import CorruptionError
from tests.corpora import pack_rows

FRAME = 32 << 10
FRAMES = 10  # at least


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found, numbers = {}, random.Random(0)
    words = ["".join(numbers.choices("abcdefgh", k=40)) for _ in range(200)]
    rows = [{"text": " ".join(numbers.choices(words, k=50))} for _ in range(200)]
    for name, options in (("samples", {}), ("tokens", {"tokenizer": "bytes", "eos": 256})):
        folder = tmp_path_factory.mktemp(name)
        found[name] = pack_rows(
            folder, rows, compression="zstd", level=1, frame_size=FRAME, shard_size="256KiB", **options
        )
    return found


def made(kind: str, packed: dict[str, Path], **options: Any) -> Any:
    if kind == "samples":
        return ss.StreamingDataset(packed["samples"], shuffle=True, **options)
    tokens = [ss.TokenDataset(packed["tokens"], seq_len=256, shuffle=True, **options) for _ in range(2)]
    return tokens[0] if kind == "tokens" else ss.Mixture([(tokens[0], 2), (tokens[1], 1)])


def content(batch: Any) -> Any:
    return batch["txt"] if "txt" in batch else batch["tokens"].tolist()


def epochs(loader: ss.StreamingLoader, count: int) -> list[list[Any]]:
    return [[content(batch) for batch in loader] for _ in range(count)]


@pytest.mark.parametrize(("kind", "engine"), [
    ("samples", "thread"), ("tokens", "thread"), ("mixture", "thread"), ("tokens", "process"),
])  # fmt: skip
def test_an_epoch_begins_with_the_frames_that_the_last_one_opened(
    packed: dict[str, Path], kind: str, engine: Any
) -> None:
    loader = ss.StreamingLoader(made(kind, packed), 8, engine=engine, threads=2)
    found, frames = [], []
    for _ in range(3):
        found.extend(map(content, loader))
        frames.append(loader.stats()["frames"])
    first = frames[0]
    assert first >= FRAMES
    assert frames[-1] == first  # all of them again in each epoch, if nothing were kept
    loader.close()
    fresh = []
    for epoch in range(3):
        other = ss.StreamingLoader(made(kind, packed), 8, engine=engine, threads=2)
        other.set_epoch(epoch)
        fresh += epochs(other, 1)[0]
        other.close()
    assert found == fresh


def fetches(loader: ss.StreamingLoader, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The list of the frames that are fetched from now on."""
    found: list[tuple[int, int]] = []
    source = type(contents_of(loader.ds).source)
    fetch = source.fetch

    def counted(self: Any, shard: int, frame: int) -> Any:
        found.append((shard, frame))
        return fetch(self, shard, frame)

    monkeypatch.setattr(source, "fetch", counted)
    return found


@pytest.mark.parametrize("kind", ["samples", "tokens"])
def test_loops_that_count_and_looks_leave_the_frames(packed: dict[str, Path], kind: str) -> None:
    loader = ss.StreamingLoader(made(kind, packed), 8, threads=2)
    for _ in range(2):
        assert sum(1 for _ in zip(range(len(loader)), loader, strict=False)) == len(loader)
        assert not loader._batches.kept.empty
    for _ in range(2):
        next(iter(loader))
        assert not loader._batches.kept.empty


def test_archives_that_are_one_stream_are_not_fetched_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in range(2):
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as tar:
            for number in range(60):
                data = random.Random(number).randbytes(900)
                info = tarfile.TarInfo(f"{name}{number:03}.bin")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    ss.index([str(tmp_path / f"{name}.tar.gz") for name in range(2)], str(tmp_path / "ds"), frame_size=4096)
    loader = ss.StreamingLoader(ss.StreamingDataset(tmp_path / "ds", shuffle=True), 8, threads=2)
    found = fetches(loader, monkeypatch)
    for epoch in range(1, 4):
        assert sum(1 for _ in loader) == 15
        assert len(found) == epoch * len(set(found))


def test_nothing_is_left_but_frames_within_the_budget(packed: dict[str, Path]) -> None:
    ram, before = 128 << 10, threading.active_count()  # a third of the frames
    ds = made("tokens", packed, cache=ss.Cache(ram=ram))
    loader = ss.StreamingLoader(ds, 8, prefetch="1MiB", threads=2)
    for _ in range(3):
        for _ in loader:
            memory = loader.stats()["memory"]["ram"]
            # Memory for the next frames, half of `prefetch`, and the frames of one batch are always allowed.
            assert sum(memory.values()) - memory["limit"] <= memory["limit"] + (1 << 19) + 8 * 2 * FRAME
        memory = loader.stats()["memory"]["ram"]
        assert memory["open frames"] <= memory["limit"]
    for _ in range(100):
        if threading.active_count() <= before:
            break
        threading.Event().wait(0.05)
    assert threading.active_count() <= before


def test_a_file_that_changes_between_two_epochs_is_an_error(tmp_path: Path) -> None:
    rows = [{"text": random.Random(number).randbytes(400).hex()} for number in range(300)]
    url = pack_rows(tmp_path, rows, compression="zstd", frame_size=FRAME, shard_size="256KiB")
    loader = ss.StreamingLoader(ss.StreamingDataset(url, shuffle=True), 8, threads=2)
    epochs(loader, 2)
    for shard in url.glob("shard-*.tar.zst"):
        with shard.open("r+b") as file:
            file.seek(shard.stat().st_size // 2)
            file.write(bytes(64))
    with pytest.raises(CorruptionError, match="shard-0"):
        epochs(loader, 1)


def test_iterations_side_by_side_and_places_between(packed: dict[str, Path]) -> None:
    loader = ss.StreamingLoader(made("samples", packed), 8, threads=2)
    wanted = epochs(loader, 4)
    state = loader.state_dict() | {"epoch": 1, "position": 40}
    loader.set_epoch(0)
    first = iter(loader)
    begun = [content(next(first)) for _ in range(2)]
    both = [(content(a), content(b)) for a, b in zip(first, loader, strict=False)]
    assert begun + [a for a, _ in both] == wanted[0][: 2 + len(both)]
    assert [b for _, b in both] == wanted[1][: len(both)]
    loader.load_state_dict(state)
    assert epochs(loader, 2) == [wanted[1][5:], wanted[2]]
    # Left in the midst: the next epoch follows.
    loader.set_epoch(2)
    assert [content(batch) for batch in islice(loader, 5)] == wanted[2][:5]
    assert epochs(loader, 1) == [wanted[3]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_between_two_epochs_reads_for_itself(packed: dict[str, Path]) -> None:
    loader = ss.StreamingLoader(made("tokens", packed), 8, threads=2)
    wanted = epochs(loader, 3)
    loader.set_epoch(0)
    epochs(loader, 1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, b"+" if epochs(loader, 2) == wanted[1:] else b"-")
        finally:
            os._exit(0)
    assert epochs(loader, 2) == wanted[1:]
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"+"
    os.close(read)
    os.close(write)


def test_a_transform_that_changes_between_two_epochs(packed: dict[str, Path]) -> None:
    ds = made("samples", packed)
    loader = ss.StreamingLoader(ds, 8, threads=2)
    wanted = epochs(loader, 2)
    loader.set_epoch(0)
    assert epochs(loader, 1) == wanted[:1]
    contents_of(ds).set_transform(lambda sample: sample | {"txt": sample["txt"][:9]})
    assert epochs(loader, 1) == [[[text[:9] for text in batch] for batch in wanted[1]]]


def test_close_lets_the_frames_go(packed: dict[str, Path]) -> None:
    loader = ss.StreamingLoader(made("samples", packed), 8, threads=2)
    epochs(loader, 2)
    frames = loader.stats()["frames"]
    loader.close()
    gc.collect()
    epochs(loader, 1)
    assert loader.stats()["frames"] - frames >= FRAMES
