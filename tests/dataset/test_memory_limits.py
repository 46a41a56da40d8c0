"""What loaders hold of their two budgets, by their own counts: no more than they were given."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.decode import images
from tests.corpora import pack_rows

RAM, PREFETCH, FRAME = 4_000_000, 1_000_000, 32 << 10
ONE_BATCH = 8 * 2 * FRAME  # its frames, which are always allowed


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Datasets of 6 MB, compressed: a shuffle of 64 lanes would have all of it open."""
    found, numbers = {}, random.Random(0)
    sentences = ["".join(numbers.choices("abcdefgh ", k=100)) for _ in range(500)]
    for name, options in (("samples", {}), ("tokens", {"tokenizer": "bytes", "eos": 256})):
        size = 6_000_000 // (2 if options else 1)
        rows = [
            {"text": " ".join(numbers.choices(sentences, k=numbers.randint(1, 40)))}
            for _ in range(size // 2050)
        ]
        folder = tmp_path_factory.mktemp(name)
        found[name] = pack_rows(
            folder, rows, compression="zstd", level=1, frame_size=FRAME, shard_size="1MiB", **options
        )
    return found


def tokens(packed: dict[str, Path], ram: int = RAM) -> ss.TokenDataset:
    return ss.TokenDataset(packed["tokens"], seq_len=512, shuffle=True, cache=ss.Cache(ram=ram))


def made(kind: str, packed: dict[str, Path]) -> Any:
    """A dataset of a kind that may have `RAM` bytes in all."""
    if kind == "samples":
        return ss.StreamingDataset(packed["samples"], shuffle=True, cache=ss.Cache(ram=RAM))
    if kind == "mixture":
        return ss.Mixture([(tokens(packed, RAM // 2), 2), (tokens(packed, RAM // 2), 1)])
    return tokens(packed)


@pytest.mark.parametrize(
    ("kind", "engine"),
    [("samples", "thread"), ("tokens", "thread"), ("mixture", "thread"), ("mixture", "process")],
)
def test_budgets_hold(packed: dict[str, Path], kind: str, engine: str) -> None:
    loader = ss.StreamingLoader(made(kind, packed), 8, prefetch=PREFETCH, engine=engine, threads=2)
    most: dict[str, int] = {}
    for _ in range(2):
        for number, _ in enumerate(loader):
            if number == 60:
                break
            for budget, held in loader.stats()["memory"].items():
                assert held["limit"] == (RAM if budget == "ram" else PREFETCH)
                for name, size in held.items():
                    assert size >= 0, (budget, held)
                    most[name] = max(most.get(name, 0), size)
                # One batch more may be there of what is prefetched, and of what it reads again.
                assert sum(held.values()) - held["limit"] <= held["limit"] + ONE_BATCH, (budget, held)
    loader.close()
    assert most["open frames"] > RAM // 8
    assert most["frames ahead"] > 0
    assert most["indexes"] > 0
    assert most["orders"] > 0
    assert most.get("block layouts", 0) > 0 or kind == "samples"
    assert most.get("shared memory", 0) > 0 or engine == "thread"


def test_images_are_built_in_memory_that_is_used_again(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "in").mkdir()
    for number in range(200):
        image.new("RGB", (64, 48), (number, 0, 0)).save(tmp_path / "in" / f"{number:03}.jpg")
    ss.pack(tmp_path / "in", tmp_path / "out", workers=1)
    ds = ss.StreamingDataset(tmp_path / "out", decode=images.Train(64))
    batch = 8 * 64 * 64 * 3 * 4
    loader = ss.StreamingLoader(ds, 8, prefetch=4 * batch, threads=2)
    waiting = 0
    for _ in range(2):
        for _ in loader:
            held = loader.stats()["memory"]["prefetch"]
            assert held["batches"] + held["idle batch buffers"] + held["frames ahead"] <= 5.5 * batch
            waiting = max(waiting, held["idle batch buffers"])
    assert waiting >= batch


def test_archives_that_do_not_fit_are_decompressed_again_and_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": f"{number} " * 200} for number in range(300)]
    plain = pack_rows(tmp_path, rows, shard_size="64KiB", frame_size="8KiB", compression="none")
    for shard in sorted(plain.rglob("*.tar")):
        (tmp_path / f"{shard.name}.gz").write_bytes(gzip.compress(shard.read_bytes()))
    ss.index(
        [str(path) for path in sorted(tmp_path.glob("*.tar.gz"))],
        str(tmp_path / "adopted"),
        frame_size="8KiB",
    )
    for ram, warned in (("64MB", False), ("1KB", True)):
        caplog.clear()
        ds = ss.StreamingDataset(tmp_path / "adopted", shuffle=True, cache=ss.Cache(ram=ram))
        assert len({sample["__key__"] for sample in ds}) == 300
        assert ("decompressed again" in caplog.text) == warned
