"""index(): archives of others become a dataset where they lie."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import CommitError, CorruptionError, SourceError, StorageError
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Store

ZSTD = zstandard.ZstdCompressor(write_checksum=True)
PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".tar": lambda data: data, ".tar.gz": gzip.compress, ".tgz": gzip.compress, ".tar.zst": ZSTD.compress,
}  # fmt: skip
CODECS = {".tar": "none", ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd-stream"}
Samples = list[tuple[str, dict[str, bytes]]]


def tar(members: list[tuple[str, bytes | None]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar as tarfile writes it; a member without data is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))
    return buffer.getvalue()


def put(folder: Path, data: bytes, suffix: str = ".tar") -> Path:
    path = folder / f"in{suffix}"
    path.write_bytes(PACKED[suffix](data))
    return path


def adopt(tars: Any, dest: Path, **options: Any) -> Samples:
    ss.index(tars, dest, workers=1, **options)
    report = ss.verify(str(dest), deep=True)
    assert report.sound, report.problems
    return list(DatasetReader.open(str(dest)).iter_samples())


MEMBERS: list[tuple[str, bytes | None]] = [
    ("d/", None), ("a.jpg", b"picture"), ("a.json", b"{}"), ("README", b"no sample " * 90),
    ("b.seg.png", b""), ("./c.txt", b"dot"), ("d/.hidden", b"?"), ("d/e.v1/f.txt", b"x" * 3000),
    ("ключ/数据.txt", "é".encode()), ("n" * 300 + ".txt", b"long"), ("LAST", b"end"),
]  # fmt: skip
SAMPLES: Samples = [
    ("a", {"jpg": b"picture", "json": b"{}"}), ("b", {"seg.png": b""}), ("c", {"txt": b"dot"}),
    ("d/e.v1/f", {"txt": b"x" * 3000}), ("ключ/数据", {"txt": "é".encode()}), ("n" * 300, {"txt": b"long"}),
]  # fmt: skip


@pytest.mark.parametrize("frame_size", ["1", "1KiB", "1MiB"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("suffix", list(PACKED))
def test_every_sample_is_read_in_order_and_by_number(tmp_path, suffix, form, frame_size):
    path = put(tmp_path, tar(MEMBERS, form), suffix)
    assert adopt(path, tmp_path / "out", frame_size=frame_size) == SAMPLES
    reader = DatasetReader.open(str(tmp_path / "out"))
    assert [reader.sample(0, number) for number in (5, 0, 3)] == [SAMPLES[number] for number in (5, 0, 3)]
    assert reader.find("c") == (0, 2)
    (shard,) = reader.manifest.shards
    assert (shard.codec, shard.bytes) == (CODECS[suffix], path.stat().st_size)
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "rejects.jsonl", "shard-000000.index"]
    assert sum(reader.manifest.provenance["skipped"].values()) == 3


names = st.text("ab1", min_size=1, max_size=2)
bodies = st.dictionaries(names, st.binary(max_size=1500), min_size=1, max_size=3)


@given(
    st.dictionaries(names, bodies, min_size=1, max_size=5),
    st.integers(1, 4096),
    st.sampled_from(list(PACKED)),
)
@settings(max_examples=40)
def test_any_archive_gives_what_tarfile_reads(tmp_path_factory, samples, frame_size, suffix):
    folder = tmp_path_factory.mktemp("any")
    members = [(f"{key}.{field}", data) for key, fields in samples.items() for field, data in fields.items()]
    path = put(folder, tar(members), suffix)
    assert adopt(path, folder / "out", frame_size=frame_size) == list(samples.items())


def test_archives_by_webdataset_itself(tmp_path):
    wanted = []
    for shard in range(3):
        with webdataset.TarWriter(str(tmp_path / f"w-{shard:02d}.tar{'.gz' * (shard == 1)}")) as writer:
            for number in range(20):
                key = f"{shard}/{number:05d}"
                writer.write({"__key__": key, "txt": f"text {number}", "cls": number, "json": {"n": number}})
                wanted.append((key, f"text {number}".encode()))
    found = adopt([tmp_path / "w-00.tar", tmp_path / "w-01.tar.gz", tmp_path / "w-02.tar"], tmp_path / "out")
    assert [(key, fields["txt"]) for key, fields in found] == wanted
    assert found[7][1]["json"] == b'{"n": 7}'


def test_the_archives_keep_their_order_and_their_bytes(tmp_path):
    for number in range(12):
        (tmp_path / f"s-{number}.tar").write_bytes(tar([(f"k{number}.txt", b"x")]))
    before = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.iterdir()}
    fingerprints = set()
    for workers in (1, 3):
        manifest = ss.index(f"{tmp_path}/s-{{0..11}}.tar", tmp_path / f"out{workers}", workers=workers)
        fingerprints.add(manifest.fingerprint)
        found = DatasetReader.open(str(tmp_path / f"out{workers}")).iter_samples()
        assert [key for key, _ in found] == [f"k{number}" for number in range(12)]
    assert len(fingerprints) == 1
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in before} == before


def test_paths_given_relative_are_found_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    put(tmp_path / "data", tar([("a.txt", b"x")]))
    monkeypatch.chdir(tmp_path)
    ss.index("data/in.tar", "out", workers=1)
    monkeypatch.chdir("/")
    assert list(DatasetReader.open(str(tmp_path / "out")).iter_samples()) == [("a", {"txt": b"x"})]


@pytest.mark.parametrize("name", ["a{1,2}.tar", "b[0].tar", "c d ✓.tar", "e?*.tar", "100%.tar"])
def test_archives_of_odd_names_in_a_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(tar([("a.txt", b"x")]))
    assert adopt(tmp_path / "in", tmp_path / "out") == [("a", {"txt": b"x"})]


def test_archives_in_a_remote_store(tmp_path):
    store = Store.open(f"memory://{uuid.uuid4().hex}")
    for suffix, pack in PACKED.items():
        store.write(f"in/x{suffix}", pack(tar([(f"k{len(suffix)}.txt", b"x")])))
    found = adopt(f"{store.url}/in", tmp_path / "out")
    assert sorted(key for key, _ in found) == ["k4", "k4", "k7", "k8"]


def test_what_failed_can_be_tried_again_in_a_remote_store(tmp_path):
    path = put(tmp_path, GOOD + b"garbage " * 64)
    store = Store.open(f"memory://{uuid.uuid4().hex}")
    with pytest.raises(SourceError, match="tar header"):
        ss.index(path, store.url, workers=1)
    path.write_bytes(GOOD + bytes(1024))
    assert ss.index(path, store.url, workers=1).samples == 1


def test_a_dataset_that_is_there_is_left_alone(tmp_path):
    path = put(tmp_path, tar([("a.txt", b"x")]))
    adopt(path, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(CommitError, match="already holds a dataset"):
        ss.index(path, tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, "target"
    return info.tobuf(tarfile.GNU_FORMAT)


GOOD = header("good.txt", 1) + b"x" + bytes(511)
REFUSED = {
    "two of one name": (header("a.txt") * 2, "appears twice"),
    "a sample that comes again": (header("a.txt") + header("b.txt") + header("a.txt"), "'a' occurs twice"),
    "names that differ in case": (header("a.txt") + header("a.TXT"), "appears twice"),
    "a field without a name": (header("a..txt"), "cannot be a field"),
    "a field that is too long": (header("a." + "f" * 101), "cannot be a field"),
    "symlink": (header("a.txt", kind=tarfile.SYMTYPE), "not a regular file"),
    "hard link to nothing": (header("a.txt", kind=tarfile.LNKTYPE), "hard link to 'target'"),
    "device": (header("a.txt", kind=tarfile.CHRTYPE), "not a regular file"),
    "sparse": (header("a.txt", kind=tarfile.GNUTYPE_SPARSE), "not a regular file"),
    "absolute": (header("/a.txt"), "absolute"),
    "parent": (header("../a.txt"), "leaves its folder"),
    "1 TiB": (header("a.txt", 1 << 40) + bytes(512), "TiB|beyond|ends inside"),
    "garbage": (b"garbage " * 64, "no valid tar header|no tar header"),
}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize("kind", list(REFUSED))
def test_an_archive_that_cannot_be_adopted_is_refused_by_name(tmp_path, kind, suffix):
    data, reason = REFUSED[kind]
    path = put(tmp_path, GOOD + data + header("z.txt") + bytes(1024), suffix)
    with pytest.raises(SourceError, match=reason) as caught:
        ss.index(path, tmp_path / "out", workers=1)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_an_archive_that_is_cut_off_is_refused(tmp_path, suffix):
    data = GOOD + header("last.txt", 600) + bytes(1024)
    for size in range(0, len(data) + 512, 512):
        with pytest.raises(SourceError):
            ss.index(put(tmp_path, data[:size], suffix), tmp_path / "out", workers=1)
    whole = PACKED[suffix](data + bytes(1024))
    step = 512 if suffix == ".tar" else 1
    enough = 512 if suffix == ".tar" else 0  # one block of zeros at the end
    for size in range(1, len(whole) - enough, step):
        (tmp_path / f"in{suffix}").write_bytes(whole[:size])
        with pytest.raises(SourceError):
            ss.index(tmp_path / f"in{suffix}", tmp_path / "out", workers=1)


def test_nothing_to_adopt_is_an_error(tmp_path):
    for tars in (put(tmp_path, tar([])), put(tmp_path, tar([("README", b"x")])), [], tmp_path / "none.tar"):
        with pytest.raises(SourceError):
            ss.index(tars, tmp_path / "out", workers=1)


def test_a_name_that_a_manifest_cannot_hold_is_refused(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar")
    Path(path).write_bytes(tar([("a.txt", b"x")]))
    with pytest.raises(SourceError, match="rename"):
        ss.index(path, tmp_path / "out", workers=1)


def problems(dest: Path, deep: bool) -> list[str]:
    return [str(problem) for problem in ss.verify(str(dest), deep=deep).problems]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize("change", ["flip", "cut", "other", "empty"])
def test_an_archive_that_changes_afterwards_is_noticed(tmp_path, suffix, change):
    path = put(tmp_path, tar([(f"{n}.txt", b"%d " % n * 999) for n in range(9)]), suffix)
    adopt(path, tmp_path / "out", frame_size="4KiB")
    data = path.read_bytes()
    at = 2000 if suffix == ".tar" else len(data) // 2
    path.write_bytes({
        "flip": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        "cut": data[: len(data) // 2],
        "other": PACKED[suffix](tar([(f"{n}.txt", b"%d!" % n * 999) for n in range(9)])),
        "empty": b"",
    }[change])  # fmt: skip
    with pytest.raises((CorruptionError, StorageError), match=r"in\.tar"):
        list(DatasetReader.open(str(tmp_path / "out")).iter_samples())
    for deep in (False, True):
        found = problems(tmp_path / "out", deep)
        assert found
        assert all(str(path) in problem for problem in found)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_an_archive_that_is_gone_is_named(tmp_path, suffix):
    path = put(tmp_path, tar([("a.txt", b"x")]), suffix)
    adopt(path, tmp_path / "out")
    path.unlink()
    with pytest.raises(StorageError, match=r"in\.tar"):
        list(DatasetReader.open(str(tmp_path / "out")).iter_samples())


def test_verify_lists_an_archive_that_is_gone(tmp_path):
    path = put(tmp_path, tar([("a.txt", b"x")]))
    adopt(path, tmp_path / "out")
    path.unlink()
    (problem,) = problems(tmp_path / "out", deep=False)
    assert str(path) in problem


def test_fields_are_in_lower_case(tmp_path):
    ss.index(put(tmp_path, tar([("A.JPG", b"x"), ("A.Txt", b"y")])), tmp_path / "out", workers=1)
    found = DatasetReader.open(str(tmp_path / "out")).iter_samples()
    assert list(found) == [("A", {"jpg": b"x", "txt": b"y"})]


def test_an_archive_with_fields_in_upper_case_is_sound(tmp_path):
    ss.index(put(tmp_path, tar([("a.JPG", b"x")])), tmp_path / "out", workers=1)
    assert problems(tmp_path / "out", deep=True) == []
