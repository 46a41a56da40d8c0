"""Archives as GNU tar writes them, in each of its formats and behind each compressor."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.packing.foreign.accounting import digests, packed

Files = dict[str, bytes]
LONG = f"{'d' * 60}/{'e' * 60}/long.txt"  # in two parts, as ustar has it
TREE: Files = {
    **{f"train/{n:03d}.jpg": b"\xff\xd8\xff" + bytes([n]) * (n * 211) for n in range(12)},
    **{f"train/{n:03d}.json": json.dumps({"n": n}).encode() for n in range(12)},
    "train/ключ ✓.txt": "größe".encode(),
    "v1/a b.txt": b"spaces", "v1/UPPER.TXT": b"upper", "v1/empty.txt": b"",
    "v1/x.seg.png": b"seg", "v1/x.jpg": b"x",
}  # fmt: skip


def write(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar(folder: Path, out: Path, *arguments: str) -> Path:
    subprocess.run(["tar", "-C", str(folder), "-cf", str(out), *arguments], check=True, capture_output=True)
    return out


def samples(files: Files) -> dict[str, dict[str, bytes]]:
    """What the files of a tree are as samples of WebDataset."""
    found: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        folder, _, base = name.rpartition("/")
        key, _, field = base.partition(".")
        found.setdefault(f"{folder}/{key}" if folder else key, {})[field.lower()] = data
    return found


@pytest.mark.parametrize("order", ["sorted", "as it comes", "shuffled"])
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_each_format_of_gnu_tar_in_any_order(tmp_path: Path, form: str, order: str) -> None:
    long = {} if form == "v7" else {LONG: b"long"}  # 99 letters are the most in v7
    files = {**TREE, **long}
    write(tmp_path / "in", files)
    names = sorted(files)
    random.Random(3).shuffle(names)
    options = {"sorted": ["--sort=name", "."], "as it comes": ["."], "shuffled": names}[order]
    path = tar(tmp_path / "in", tmp_path / "a.tar", f"--format={form}", *options)
    account = packed(path, tmp_path / "out")
    assert account.samples == digests(samples(files))
    assert not account.named


LZ4 = pytest.importorskip("lz4.frame").compress
COMPRESSORS: dict[str, Callable[[bytes], bytes] | list[str]] = {
    "gzip": ["gzip", "-c"], "gzip -1": ["gzip", "-1c"], "bzip2": ["bzip2", "-c"], "xz": ["xz", "-c"],
    "zstd": ["zstd", "-qc"], "zstd --long": ["zstd", "-qc", "--long=27", "-19"], "lz4": ["lz4", "-cq"],
    "zstd without checks": ["zstd", "-qc", "--no-check"], "pzstd": ["pzstd", "-qc"],
    "of Python: gzip": gzip.compress, "of Python: bz2": bz2.compress, "of Python: xz": lzma.compress,
    "of Python: zstd": zstandard.ZstdCompressor().compress, "of Python: lz4": LZ4,
    "two members of gzip": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
    "two streams of xz": lambda data: lzma.compress(data[:5000]) + lzma.compress(data[5000:]),
    "two streams of bz2": lambda data: bz2.compress(data[:5000]) + bz2.compress(data[5000:]),
    "two frames of lz4": lambda data: LZ4(data[:5000]) + LZ4(data[5000:]),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSORS)
def test_each_compressor_whatever_the_name_says(tmp_path: Path, name: str) -> None:
    how = COMPRESSORS[name]
    if isinstance(how, list) and shutil.which(how[0]) is None:
        pytest.skip(f"{how[0]} is not installed")
    plain = tar(write(tmp_path / "in", TREE), tmp_path / "plain.tar", ".").read_bytes()
    lines = "".join(json.dumps({"id": n, "text": f"text {n}"}) + "\n" for n in range(400)).encode()
    for data, suffix, wanted in (
        (plain, ".tar", samples(TREE)),
        (lines, ".jsonl", {str(n): {"txt": b"text %d" % n, "json": b'{"id":%d}' % n} for n in range(400)}),
    ):
        made = how(data) if callable(how) else subprocess.run(
            how, input=data, capture_output=True, check=True
        ).stdout  # fmt: skip
        path = tmp_path / f"in{suffix}"
        path.write_bytes(made)
        account = packed(path, tmp_path / f"out{suffix}")
        assert account.samples == digests(wanted)
        assert not account.named


def test_every_member_is_packed_or_named(tmp_path: Path) -> None:
    """Links, devices, holes, files of macOS, names that are none: each is a member, and each is told."""
    folder = write(tmp_path / "in", {"a.txt": b"a", "b.txt": b"b", "c.txt": b"c", "README": b"r"})
    write(folder, {"._a.txt": b"mac", "__MACOSX/x.txt": b"mac", ".hidden.txt": b"h", "d/.DS_Store": b"h"})
    os.symlink("a.txt", folder / "link.txt")
    os.link(folder / "b.txt", folder / "hard.txt")
    os.mkfifo(folder / "pipe.txt")
    with (folder / "holes.txt").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    path = tar(folder, tmp_path / "a.tar", "--sparse", "--sort=name", ".")
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("../up.txt"))
        archive.addfile(tarfile.TarInfo("/absolute.txt"))
    with tarfile.open(path) as archive:
        members = [member.name.removeprefix("./").lstrip("/") for member in archive if not member.isdir()]
    account = packed(path, tmp_path / "out", folder)
    wanted = {"a": b"a", "b": b"b", "c": b"c", "hard": b"b"}
    assert account.samples == digests({key: {"txt": data} for key, data in wanted.items()})
    told = {where.rpartition(":")[2].removesuffix(".txt") for where in account.named}
    assert {name.removesuffix(".txt") for name in members} == {*wanted, *told}
    refused = {where.rpartition(":")[2] for where in account.rejects}
    assert refused == {"link", "pipe", "holes", "../up", "absolute"}
    assert all(account.rejects.values())
    assert account.samples["hard"] == account.samples["b"]


def test_joined_archives_and_ends_of_any_length(tmp_path: Path) -> None:
    one = tar(write(tmp_path / "one", {"a.txt": b"a"}), tmp_path / "one.tar", ".").read_bytes()
    two = tar(write(tmp_path / "two", {"b.txt": b"b"}), tmp_path / "two.tar", ".").read_bytes()
    wanted = digests({"a": {"txt": b"a"}, "b": {"txt": b"b"}})
    for number, data in enumerate(
        (one + two, one.rstrip(b"\0").ljust(1536, b"\0") + bytes(512) + two, one + two + bytes(10240))
    ):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data)
        assert packed(path, tmp_path / f"out{number}").samples == wanted
    joined = tmp_path / "joined.tar.gz"
    joined.write_bytes(gzip.compress(one) + gzip.compress(two))
    assert packed(joined, tmp_path / "joined").samples == wanted


def test_webdataset_writes_what_comes_back(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    rows = [
        {"__key__": f"k{n}", "txt": f"text {n}", "json": {"n": n}, "cls": n, "npy.bin": bytes([n])}
        for n in range(9)
    ]
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for row in rows:
            writer.write(row)
    wanted: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "a.tar") as archive:
        for member in archive:
            key, _, field = member.name.partition(".")
            wanted.setdefault(key, {})[field] = io.BytesIO(archive.extractfile(member).read()).read()  # type: ignore[union-attr]
    assert len(wanted) == 9
    assert packed(tmp_path / "a.tar", tmp_path / "out").samples == digests(wanted)
