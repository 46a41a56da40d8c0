"""Provenance: the same for the same input wherever it lies; and packs that version 0.1 began."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shardstream as ss
from shardstream.errors import OptionError
from shardstream.packing.destination import Destination
from shardstream.packing.sources.base import relative
from shardstream.progress import Progress
from shardstream.storage.inputs import FileInfo
from tests.contracts.test_sources import picture
from tests.corpora import digests, is_clean, lines, sound

ROWS = [{"id": f"k{n}", "text": f"text {n}"} for n in range(40)]
SMALL = {"frame_size": "64", "shard_size": "256"}


def one_file(folder: Path) -> Path:
    return lines(folder / "corpus.jsonl", ROWS)


def two_files(folder: Path) -> list[Path]:
    return [lines(folder / "a.jsonl", ROWS), lines(folder / "b.jsonl", ROWS)]


def a_folder(folder: Path) -> Path:
    for name in ("a.txt", "sub/b.txt", "sub/deeper/c.md"):
        (folder / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "texts" / name).write_text(name)
    return folder / "texts"


def images(folder: Path) -> Path:
    for number in range(4):
        (folder / "im" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "im" / "ab"[number % 2] / f"{number}.png").write_bytes(picture(number))
    return folder / "im"


def glob_of(folder: Path) -> str:
    two_files(folder)
    return str(folder / "*.jsonl")


Make = Callable[[Path], Any]
INPUTS: list[Make] = [one_file, two_files, a_folder, images, glob_of]


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("options", [{}, {"shuffle": 1}], ids=["plain", "shuffled"])
def test_the_same_input_gives_the_same_bytes_from_any_folder(
    tmp_path: Path, make: Make, options: dict[str, Any]
) -> None:
    seen = []
    for place in ("here", "there/with a longer/name"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        manifest = ss.pack(make(folder), folder / "out", workers=1, **SMALL, **options)
        seen.append((manifest.fingerprint, digests(folder / "out")))
        assert str(tmp_path) not in (folder / "out" / "manifest.json").read_text()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("make", [one_file, a_folder])
def test_a_relative_path_a_url_and_memory_are_the_same_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    import fsspec

    given = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    memory = f"memory://provenance-{make.__name__}/{given.name}"
    fsspec.filesystem("memory").put(str(given), memory, recursive=True)
    found = {
        ss.pack(name, f"out{number}", workers=1, **SMALL).fingerprint
        for number, name in enumerate([given, given.name, f"file://{given}", memory])
    }
    assert len(found) == 1


@pytest.mark.parametrize("make", INPUTS)
def test_an_unfinished_pack_goes_on_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    whole = ss.pack(make(tmp_path / "one"), tmp_path / "whole", workers=1, **SMALL)
    begin(make(tmp_path / "one"), tmp_path / "out", monkeypatch)
    shutil.rmtree(tmp_path / "one")
    seen: list[Progress] = []
    found = ss.pack(
        make(tmp_path / "two"), tmp_path / "out", workers=1, resume=True, progress=seen.append, **SMALL
    )
    assert seen[0].done_tasks == seen[0].total_tasks
    assert found == whole
    assert is_clean(tmp_path / "out")


def test_other_data_of_the_same_names_and_sizes_is_another_input(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    ss.pack(one_file(tmp_path), tmp_path / "out", workers=1)
    other = lines(tmp_path / "other" / "corpus.jsonl", [{**row, "text": row["text"].upper()} for row in ROWS])
    assert other.stat().st_size == (tmp_path / "corpus.jsonl").stat().st_size
    with pytest.raises(ss.CommitError, match="already holds a dataset"):
        ss.pack(other, tmp_path / "out", workers=1, resume=True)


@pytest.mark.parametrize(
    ("url", "root", "name"),
    [
        ("https://me:secret@host/d/a.jsonl?sig=se/cret#secret", "", "a.jsonl"),
        ("https://host/a.jsonl?X-Amz-Signature=secret", "", "a.jsonl"),
        ("s3://bucket/d/a.jsonl", "s3://bucket/d", "a.jsonl"),
        ("s3://bucket/d/e/a?b.jsonl", "s3://bucket/d/", "e/a?b.jsonl"),
        ("https://me:secret@host/d/a.jsonl", "https://me:secret@host/d", "a.jsonl"),
        ("/home/me/a?b.jsonl", "", "a?b.jsonl"),
        ("/home/me/d/e/a.jsonl", "/home/me", "d/e/a.jsonl"),
    ],
)
def test_a_name_has_neither_the_place_nor_credentials(url: str, root: str, name: str) -> None:
    assert relative(FileInfo(url, 1, root)) == name


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def begin(sources: Any, dest: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A pack that was killed just before its commit."""
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "commit", _killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(sources, dest, workers=1, **SMALL, **options)


def as_by_01(
    dest: Path, format: str, files: list[Path], named: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Make the reservation in `dest` one of version 0.1; returns what 0.1 recorded."""
    listing = b"".join(b"%s\0%d\n" % (os.fsencode(path), path.stat().st_size) for path in files)
    options = {
        "format": format, "compression": "zstd", "level": 3, "frame_size": 64, "shard_size": 256,
        "shuffle": None, "limit": None, "on_error": "raise", **named,
    }  # fmt: skip
    sources = {
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "first": str(files[0]),
        "listing_sha256": hashlib.sha256(listing).hexdigest(),
    }
    record = {"tool": "shardstream 0.1.0", "options": options, "sources": sources, **more}
    plan = hashlib.sha256(msgspec.json.encode([record, False], order="deterministic")).hexdigest()
    (dest / ".pack-claim.json").write_text(json.dumps({"plan": plan, "base": ""}))
    return record


JSONL: dict[str, Any] = {"text_key": "text", "keep": None}


@pytest.mark.parametrize("form", ["jsonl", "text"])
def test_a_pack_that_version_0_1_began_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    given = one_file(tmp_path) if form == "jsonl" else a_folder(tmp_path)
    files = [given] if form == "jsonl" else [given / n for n in ("a.txt", "sub/b.txt", "sub/deeper/c.md")]
    whole = ss.pack(given, tmp_path / "whole", workers=1, **SMALL)
    begin(given, tmp_path / "out", monkeypatch)
    as_by_01(tmp_path / "out", form, files, JSONL if form == "jsonl" else {})
    seen: list[Progress] = []
    found = ss.pack(given, tmp_path / "out", workers=1, resume=True, progress=seen.append, **SMALL)
    assert seen[0].done_tasks == seen[0].total_tasks
    assert found == whole
    assert is_clean(tmp_path / "out")
    assert sound(tmp_path / "out")


def test_a_pack_of_version_0_1_that_would_go_on_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = two_files(tmp_path)
    begin(files, tmp_path / "out", monkeypatch)
    as_by_01(tmp_path / "out", "jsonl", files, JSONL)
    with pytest.raises(OptionError, match=r"version 0\.1 began this pack.*without --resume"):
        ss.pack(files, tmp_path / "out", workers=1, resume=True, **SMALL)
    ss.pack(files, tmp_path / "out", workers=1, **SMALL)
    assert is_clean(tmp_path / "out")


def test_a_pack_of_version_0_1_that_was_committed_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = one_file(tmp_path)
    manifest = ss.pack(given, tmp_path / "out", workers=1, **SMALL)
    record = as_by_01(tmp_path / "out", "jsonl", [given], JSONL)
    old = ss.Manifest.build("samples", manifest.fields, manifest.shards, {**record, "rejected": 0})
    (tmp_path / "out" / "manifest.json").write_bytes(old.to_bytes())
    assert (
        ss.pack(given, tmp_path / "out", workers=1, resume=True, **SMALL) == old
    )  # killed before it cleaned
    assert is_clean(tmp_path / "out")
    assert ss.pack(given, tmp_path / "out", workers=1, resume=True, **SMALL) == old
