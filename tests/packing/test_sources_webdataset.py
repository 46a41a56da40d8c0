"""Archives of others: what of them becomes samples, and that no hostile one does harm."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

import shardstream as ss
from shardstream.errors import SourceError
from shardstream.read.reader import DatasetReader

ZSTD = zstandard.ZstdCompressor(write_checksum=True)
PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".tar": lambda data: data, ".tar.gz": gzip.compress, ".tgz": gzip.compress,
    ".tar.zst": ZSTD.compress, ".tar.zstd": ZSTD.compress,
}  # fmt: skip
Members = list[tuple[str, bytes]]
Samples = list[tuple[str, dict[str, bytes]]]


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def tar(members: Members, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar that ends with its two zero blocks."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    return buffer.getvalue()[:end] + bytes(1024)


def put(folder: Path, data: bytes, suffix: str = ".tar") -> Path:
    path = folder / f"in{suffix}"
    path.write_bytes(PACKED[suffix](data))
    return path


def pack(source: Any, dest: Path, **options: Any) -> Samples:
    ss.pack(source, dest, format="webdataset", workers=1, **options)
    assert ss.verify(str(dest), deep=True).sound
    return list(DatasetReader.open(str(dest)).iter_samples())


MEMBERS: Members = [
    ("a.jpg", b"picture"), ("a.json", b"{}"), ("b.JPG", b""), ("b.seg.png", b"mask"), ("./c.txt", b"dot"),
    ("dir.v1/d.txt", b"x" * 3000), ("ключ/数据.txt", "é".encode()), ("n" * 300 + ".txt", b"long"),
]  # fmt: skip
SAMPLES: Samples = [
    ("a", {"jpg": b"picture", "json": b"{}"}), ("b", {"jpg": b"", "seg.png": b"mask"}),
    ("c", {"txt": b"dot"}), ("dir.v1/d", {"txt": b"x" * 3000}), ("ключ/数据", {"txt": "é".encode()}),
    ("n" * 300, {"txt": b"long"}),
]  # fmt: skip


@pytest.mark.parametrize("suffix", list(PACKED))
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_every_sample_comes_back_in_order(tmp_path: Path, suffix: str, form: int) -> None:
    path = put(tmp_path, tar(MEMBERS, form), suffix)
    assert pack(path, tmp_path / "out") == SAMPLES
    assert pack(path, tmp_path / "small", frame_size=1, shard_size=1) == SAMPLES


def test_directories_and_padding_are_passed_over(tmp_path: Path) -> None:
    data = header("d/", kind=tarfile.DIRTYPE) + tar([("d/a.txt", b"x")]) + bytes(20 * 512)
    for number, suffix in enumerate(PACKED):
        assert pack(put(tmp_path, data, suffix), tmp_path / f"out{number}") == [("d/a", {"txt": b"x"})]


def test_our_own_shards_are_archives_like_others(tmp_path: Path) -> None:
    members = [(f"{number:04d}.txt", b"%d" % number * 40) for number in range(500)]
    for codec in ("zstd", "none"):
        first = pack(put(tmp_path, tar(members)), tmp_path / codec, compression=codec, frame_size=700)
        shards = sorted((tmp_path / codec).glob("*.tar*"))
        assert len(shards) == 1
        assert pack(shards[0], tmp_path / f"{codec}-again") == first


def test_brace_lists_and_globs_keep_the_order_of_the_archives(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"s-{number:03d}.tar").write_bytes(tar([(f"k{number}.txt", b"x")]))
    keys = [f"k{number}" for number in range(12)]
    wanted = {"s-{000..011}": keys, "s-*": keys, "s-00{3,1}": ["k3", "k1"]}
    for number, (pattern, expected) in enumerate(wanted.items()):
        found = pack(f"{tmp_path}/{pattern}.tar", tmp_path / f"out{number}")
        archives = [f"s-{int(key[1:]):03d}/{key}" for key in expected]
        assert [key for key, _ in found] == archives


@pytest.mark.parametrize(
    ("members", "where", "reason", "left"),
    [
        ([("a.txt", b"1"), ("a.txt", b"2")], "a", "appears twice", 0),
        ([("a.txt", b"1"), ("a.TXT", b"2")], "a", "appears twice", 0),
        ([("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3")], "a", "occurs twice", 2),
        (
            [("a.txt", b"1"), ("b.txt", b"2"), ("a.json", b"3"), ("b.c", b"4"), ("a.txt", b"5")],
            "a",
            "not clear",
            1,
        ),
        ([("a..txt", b"x")], "a", "cannot be a field", 0),
        ([("a." + "f" * 101, b"x")], "a", "cannot be a field", 0),
    ],
)
def test_a_bad_sample_is_rejected_by_archive_and_key(
    tmp_path: Path, members: Members, where: str, reason: str, left: int
) -> None:
    path = put(tmp_path, tar([*members, ("last.txt", b"ok")]), ".tar.gz")
    with pytest.raises(SourceError) as caught:
        pack(path, tmp_path / "raise")
    assert f"{path}:{where}: " in str(caught.value)
    assert reason in str(caught.value)
    found = pack(path, tmp_path / "out", on_error="skip")
    assert found[-1] == ("last", {"txt": b"ok"})
    assert len(found) == left + 1
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert {row["where"] for row in rows} == {f"{path}:{where}"}


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header("pax", len(records), kind) + records + bytes(-len(records) % 512)


GOOD = header("good.txt", 1) + b"x" + bytes(511)
HOSTILE = {
    "absolute": header("/etc/passwd.txt"),
    "parent": header("../x.txt"),
    "inner parent": header("a/../../x.txt"),
    "backslash": header("a\\x.txt"),
    "parent directory": header("../x/", kind=tarfile.DIRTYPE),
    "symlink": header("a.txt", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": header("a.txt", kind=tarfile.LNKTYPE, link="a.txt"),
    "fifo": header("a.txt", kind=tarfile.FIFOTYPE),
    "device": header("a.txt", kind=tarfile.BLKTYPE),
    "sparse": header("a.txt", kind=tarfile.GNUTYPE_SPARSE),
    "pax sparse": pax(b"22 GNU.sparse.major=1\n") + header("a.txt"),
    "pax parent": pax(b"17 path=../x.txt\n") + header("a.txt"),
    "pax not utf8": pax(b"13 path=\xff\xfe.t\n") + header("a.txt"),
    "pax length": pax(b"99 path=a.txt\n") + header("a.txt"),
    "pax no length": pax(b"path=a.txt\n") + header("a.txt"),
    "pax size": pax(b"12 size=-99\n") + header("a.txt"),
    "pax huge": header("pax", 1 << 40, b"x"),
    "name not utf8": header("a.txt").replace(b"a.txt", b"\xff.txt"),
    "1 TiB": header("a.txt", 1 << 40) + bytes(512),
    "2 EiB": header("a.txt", 1 << 61) + bytes(512),
    "negative": header("a.txt", -1),
    "lone zero block": bytes(512) + GOOD,
    "garbage": b"garbage " * 64,
    "no end": b"",
}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_archive_is_refused_and_where_bad_samples_are_skipped_named(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    end = b"" if kind == "no end" else GOOD + bytes(1024)
    path = put(tmp_path, GOOD + HOSTILE[kind] + end, suffix)
    with pytest.raises(SourceError, match=r"in\.\S+: "):
        pack(path, tmp_path / "out")
    try:
        found = pack(path, tmp_path / "out", on_error="skip")
    except SourceError as error:  # too much of it
        assert str(path) in str(error)  # noqa: PT017
        assert not (tmp_path / "out" / "manifest.json").exists()
    else:
        assert found == [("good", {"txt": b"x"})]
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert all(row["where"].startswith(str(path)) and row["reason"] for row in rows)
    assert rows


def test_an_archive_that_is_cut_off_at_any_block_is_refused(tmp_path: Path) -> None:
    data = tar(MEMBERS)
    for size in range(0, len(data) - 512, 512):  # one block of zeros at the end is enough
        with pytest.raises(SourceError):
            pack(put(tmp_path, data[:size]), tmp_path / "out")


@pytest.mark.parametrize("compress", [gzip.compress, ZSTD.compress, bz2.compress, lzma.compress])
def test_a_compressed_archive_that_is_cut_off_anywhere_is_refused(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(tar(MEMBERS[:3]))
    path = tmp_path / "in.tar.bz2"  # the content counts, but for files too short to show it
    for size in range(len(whole)):  # the last bytes are its checksum
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError):
            pack(path, tmp_path / "out")


BOMB = 512 << 20  # bytes, of which no more than a few frames may be held
BLANK = b" " * ((1 << 20) - 1) + b"\n"
BOMBS = {
    "after the end": (GOOD + bytes(1024), bytes(1 << 20), b""),
    "no field": (GOOD + header("README", BOMB), bytes(1 << 20), header("last.txt") + bytes(1024)),
    "lines": (b'{"id":"a","text":"x"}\n', BLANK, b""),
}


@functools.cache  # a second to make, a few KiB to hold
def bomb(kind: str, compression: str) -> bytes:
    """A head, 512 MiB, and a tail, compressed to little: one zstd frame, or many gzip members."""
    head, block, tail = BOMBS[kind]
    if compression == "gz":
        return gzip.compress(head) + gzip.compress(block) * (BOMB >> 20) + gzip.compress(tail)
    frame = ZSTD.compressobj()
    parts = [frame.compress(part) for part in (head, *[block] * (BOMB >> 20), tail)]
    return b"".join([*parts, frame.flush()])


MEASURE = """
import resource, sys
import shardstream as ss
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "index":
    ss.index(sys.argv[2], sys.argv[3], workers=1)
else:
    ss.pack(sys.argv[2], sys.argv[3], workers=1, on_error="skip", compression="zstd")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("command", "kind", "compression"),
    [
        ("pack", "after the end", "zst"),
        ("pack", "no field", "gz"),
        pytest.param("pack", "no field", "zst", marks=pytest.mark.long),
        ("pack", "lines", "zst"),
        pytest.param("index", "no field", "gz", marks=pytest.mark.long),
        ("index", "no field", "zst"),
    ],
)
def test_what_expands_to_much_takes_little_memory(
    tmp_path: Path, command: str, kind: str, compression: str
) -> None:
    path = tmp_path / f"bomb.{'jsonl' if kind == 'lines' else 'tar'}.{compression}"
    path.write_bytes(bomb(kind, compression))
    assert path.stat().st_size < 4 << 20
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, command, path, tmp_path / "out"],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) << 10 < 320 << 20 < BOMB
    assert (tmp_path / "out" / "manifest.json").exists()
