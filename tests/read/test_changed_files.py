"""Local files that change under a reader: an error that names the shard, never a mixture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import CorruptionError, StorageError

ROWS = 400


def make(url: Path, letter: str, **options: Any) -> Path:
    """Documents of one length, so that datasets of different letters have files of the same sizes.

    They are random, so that compressed ones are of many frames.
    """
    source, random = url.with_suffix(".jsonl"), Random(letter)
    letters = [chr(ord(letter) + 4 * step) for step in range(6)]
    with source.open("w") as file:
        for number in range(ROWS):
            text = f"{letter} {number:04d} " + "".join(random.choices(letters, k=500))
            file.write(json.dumps({"id": f"{number:04d}", "text": text}) + "\n")
    ss.pack(source, url, shard_size="64KiB", frame_size="16KiB", workers=1, **options)
    return url


def shards(url: Path) -> list[Path]:
    return [url / shard.url for shard in ss.StreamingDataset(url).manifest.shards]


def overwrite(old: Path, new: Path) -> None:
    for name in sorted(path.name for path in new.iterdir()):
        with (old / name).open("r+b") as file:
            file.write((new / name).read_bytes())


def replace(old: Path, new: Path) -> None:
    for path in list(new.iterdir()):
        os.replace(path, old / path.name)


def touch(old: Path, new: Path) -> None:
    for path in old.iterdir():
        os.utime(path)


def restore(old: Path, new: Path) -> None:
    """The same content, as other files."""
    for path in list(old.iterdir()):
        copy = path.with_suffix(".copy")
        copy.write_bytes(path.read_bytes())
        os.replace(copy, path)


def cut(old: Path, new: Path) -> None:
    for path in old.glob("shard-*.tar*"):
        if path.suffix in (".tar", ".zst"):
            os.truncate(path, 1000)


KINDS = ["none", "zstd", "tokens", "tokens zstd"]


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    options: dict[str, Any] = {"compression": "zstd" if "zstd" in request.param else "none"}
    if "tokens" in request.param:
        options |= {"tokenizer": "bytes", "eos": 256}
    return make(tmp_path / "old", "a", **options), make(tmp_path / "new", "b", **options)


def opened(url: Path, **options: Any) -> Any:
    shuffle = ss.Shuffle(seed=1)
    if ss.StreamingDataset(url).manifest.fields[0].name == "tokens":
        return ss.TokenDataset(url, seq_len=64, shuffle=shuffle, **options)
    return ss.StreamingDataset(url, shuffle=shuffle, **options)


def letters(batch: Any) -> list[str]:
    """Which of the datasets each sample of a batch is of."""
    if "txt" in batch:
        return [text[0] for text in batch["txt"]]
    return ["b" if ((row - ord("b")) % 4 == 0).sum() > len(row) // 2 else "a" for row in batch["tokens"]]


@pytest.mark.parametrize("taken", [1, 30, None])
@pytest.mark.parametrize("transform", [False, True])
def test_overwriting_in_place_is_an_error(
    pair: tuple[Path, Path], taken: int | None, transform: bool
) -> None:
    old, new = pair
    ds = opened(old, transform=dict) if transform else opened(old)
    loader = ss.StreamingLoader(ds, batch_size=4, last="short", threads=1)
    batches = iter(loader)
    seen = [
        letter for _, batch in zip(range(taken or 10**9), batches, strict=False) for letter in letters(batch)
    ]
    assert set(seen) == {"a"}
    overwrite(old, new)
    # Compressed frames may have been read ahead, all of them.
    # The manifest of the new one may be seen first.
    changed = pytest.raises((CorruptionError, StorageError), match=r"shard-0000|was replaced while")
    with changed:
        seen.extend(letter for batch in chain(batches, loader) for letter in letters(batch))
    if ds.manifest.shards[0].codec == "zstd":
        assert set(seen) == {"a"}
    with changed:
        [ds[number] for number in range(len(ds))]


def test_one_frame_that_changes_while_it_is_in_use_is_an_error(tmp_path: Path) -> None:
    url = make(tmp_path / "old", "a", compression="none")
    ds = ss.StreamingDataset(url)
    loader = ss.StreamingLoader(ds, batch_size=2, threads=1)
    list(loader)
    path = shards(url)[0]
    at, batches = path.read_bytes().index(b"a 0000"), iter(loader)
    next(batches)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"b")
    with pytest.raises(CorruptionError, match=r"frame 0: changed while"):
        list(batches)


@pytest.mark.parametrize("change", [touch, restore, replace])
def test_what_leaves_the_content_or_the_old_file_is_no_error(
    pair: tuple[Path, Path], change: Callable[[Path, Path], None]
) -> None:
    old, new = pair
    loader = ss.StreamingLoader(opened(old), batch_size=4, last="short", threads=1)
    wanted = [letter for batch in loader for letter in letters(batch)]
    batches = iter(loader)
    found = letters(next(batches))
    change(old, new)
    found += [letter for batch in batches for letter in letters(batch)]
    assert found == wanted
    assert [letter for batch in loader for letter in letters(batch)] == wanted


# Each is a program of its own.
@pytest.mark.parametrize(
    "pair",
    ["none", "tokens zstd", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("zstd", "tokens"))],
    indirect=True,
)
def test_a_file_cut_short_is_an_error_and_does_not_kill(pair: tuple[Path, Path]) -> None:
    old, _ = pair
    code = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_changed_files import cut, opened
import shardstream as ss
from shardstream.errors import CorruptionError, StorageError
old = Path({str(old)!r})
ds = opened(old)
loader = ss.StreamingLoader(ds, batch_size=4, last="short", threads=1)
list(loader)
cut(old, old)
time.sleep(0.2)
for what in (lambda: list(loader), lambda: ds[0]):
    try:
        what()
    except CorruptionError as error:
        print("cut short to 1000 bytes" in str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n"), done.stderr


def test_overwriting_under_the_process_engine_is_an_error(tmp_path: Path) -> None:
    old, new = (make(tmp_path / letter, letter, compression="none") for letter in "ab")
    loader = ss.StreamingLoader(ss.StreamingDataset(old), batch_size=4, engine="process")
    list(loader)
    overwrite(old, new)
    with pytest.raises(CorruptionError, match="shard-000000"):
        list(loader)


def test_overwriting_under_a_mixture_is_an_error(tmp_path: Path) -> None:
    old, new = (make(tmp_path / letter, letter, compression="none") for letter in "ab")
    other = make(tmp_path / "c", "c", compression="none")
    mixture = ss.Mixture([(ss.StreamingDataset(old), 1), (ss.StreamingDataset(other), 1)], stop="all")
    loader = ss.StreamingLoader(mixture, batch_size=4)
    list(loader)
    overwrite(old, new)
    with pytest.raises(CorruptionError, match="shard-000000"):
        list(loader)


def test_random_access_to_an_overwritten_dataset_is_an_error(tmp_path: Path) -> None:
    old, new = (make(tmp_path / letter, letter, compression="none") for letter in "ab")
    ds = ss.StreamingDataset(old)
    assert ds[3]["txt"].startswith("a")
    overwrite(old, new)
    with pytest.raises(CorruptionError, match="frame 0: changed"):
        ds[3]
