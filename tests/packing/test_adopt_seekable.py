"""index(): archives in the Zstandard Seekable Format are read by frames, not as a whole."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import shardstream as ss
from shardstream.errors import CorruptionError, SourceError
from shardstream.format import frames
from shardstream.packing import adopt_archive, adopt_seekable
from shardstream.read.reader import DatasetReader

SAMPLES = [
    (f"{n:03d}", {"jpg": bytes([n]) * 3000, "txt": b"text %d" % n}) for n in range(40)
]  # fmt: skip


def members() -> list[bytes]:
    """The members of a tar, each with its headers; then its end."""
    parts = []
    for key, fields in SAMPLES:
        for field, data in fields.items():
            info = tarfile.TarInfo(f"{key}.{field}")
            info.size = len(data)
            parts.append(info.tobuf() + data + bytes(-len(data) % 512))
    return [*parts, bytes(10240)]


def zstd(data: bytes, named: bool) -> bytes:
    """One frame by the zstd command; `named`: with the size of its content, as a file has it."""
    size = [f"--stream-size={len(data)}"] if named else []
    command = ["zstd", "-q", "-c", "--check", *size]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def seekable(path: Path, parts: Sequence[bytes], named: bool = True) -> Path:
    """A file as t2sz writes it: a frame for each part, and a seek table."""
    packed = [zstd(part, named) for part in parts]
    table = frames.seek_table([(len(a), len(b), a[-4:]) for a, b in zip(packed, parts, strict=True)])
    path.write_bytes(b"".join(packed) + table)
    return path


def found(dest: Path) -> list[tuple[str, dict[str, bytes]]]:
    report = ss.verify(str(dest), deep=True)
    assert report.sound, report.problems
    return list(DatasetReader.open(str(dest)).iter_samples())


def pairs(parts: Sequence[bytes]) -> list[bytes]:
    return [b"".join(parts[at : at + 2]) for at in range(0, len(parts), 2)]


def test_our_own_shards_have_their_frames(tmp_path: Path) -> None:
    path = tmp_path / "in.tar"
    path.write_bytes(b"".join(members()))
    packed = ss.pack(path, tmp_path / "packed", compression="zstd", frame_size="16KiB", workers=1)
    adopted = ss.index(f"{tmp_path}/packed/*.tar.zst", tmp_path / "out", frame_size=1, workers=1)
    assert found(tmp_path / "out") == SAMPLES
    (ours,), (theirs,) = packed.shards, adopted.shards
    assert adopted.version == 1
    assert theirs.codec == "zstd"
    assert (theirs.frames, theirs.raw_bytes) == (ours.frames, ours.raw_bytes)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("cut", ["members", "samples"])
def test_archives_of_t2sz_are_read_by_frames(tmp_path: Path, cut: str, named: bool) -> None:
    parts = members() if cut == "members" else pairs(members())
    path = seekable(tmp_path / "in.tar.zst", parts, named)
    manifest = ss.index(path, tmp_path / "out", frame_size="8KiB", workers=1)
    (shard,) = manifest.shards
    assert (shard.codec, shard.grouped, manifest.version) == ("zstd", True, 2)
    assert shard.frames == 20
    assert found(tmp_path / "out") == SAMPLES
    reader = DatasetReader.open(str(tmp_path / "out"))
    index = reader.index(0)
    assert int(index.frame_size.max()) < shard.bytes // 8
    assert reader.sample(0, 33) == SAMPLES[33]
    for decode in (False, True):
        loader = ss.StreamingLoader(
            ss.StreamingDataset(str(tmp_path / "out"), decode=decode, fields=["txt"]), 8
        )
        assert sum(len(batch["txt"]) for batch in loader) == 40


def test_frames_that_cut_through_samples_are_taken_together(tmp_path: Path) -> None:
    data = b"".join(members())
    path = seekable(tmp_path / "in.tar.zst", [data[at : at + 1500] for at in range(0, len(data), 1500)])
    manifest = ss.index(path, tmp_path / "out", frame_size="1KiB", workers=1)
    assert manifest.shards[0].codec == "zstd"
    assert found(tmp_path / "out") == SAMPLES


def test_frames_that_are_too_large_together_are_read_as_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"".join(members())
    path = seekable(tmp_path / "in.tar.zst", [data[at : at + 1500] for at in range(0, len(data), 1500)])
    for module in (adopt_archive, adopt_seekable):
        monkeypatch.setattr(module, "MAX_REGROUPED", 2000)
    manifest = ss.index(path, tmp_path / "out", frame_size="1KiB", workers=1)
    assert (manifest.shards[0].codec, manifest.version) == ("zstd-stream", 1)
    assert found(tmp_path / "out") == SAMPLES


def test_scattered_members_and_skips_in_frames(tmp_path: Path) -> None:
    parts = members()
    order = [*parts[:-1:2], *parts[1::2], parts[-1]]
    path = seekable(tmp_path / "in.tar.zst", order)
    ss.index(path, tmp_path / "out", frame_size="8KiB", workers=1)
    assert found(tmp_path / "out") == SAMPLES


@pytest.mark.parametrize("change", ["table", "other"])
def test_a_seek_table_that_is_wrong_does_no_harm(tmp_path: Path, change: str) -> None:
    path = seekable(tmp_path / "in.tar.zst", pairs(members()))
    data = bytearray(path.read_bytes())
    at = len(data) - 9 - 12 * 20
    if change == "table":  # one frame is said to be longer
        data[at + 4] ^= 1
        path.write_bytes(data)
        with pytest.raises(SourceError, match="seek table"):
            ss.index(path, tmp_path / "out", frame_size=1, workers=1)
    else:
        data[-9] ^= 1  # another number of frames: no table that fits
        path.write_bytes(data)
        assert ss.index(path, tmp_path / "out", workers=1).shards[0].codec == "zstd-stream"


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = seekable(tmp_path / "in.tar.zst", members(), named=False)
    ss.index(path, tmp_path / "out", frame_size="8KiB", workers=1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        list(DatasetReader.open(str(tmp_path / "out")).iter_samples())


def test_sizes_of_several_frames_are_checked_before_memory_is_taken() -> None:
    stored = zstd(b"x" * 1000, True) + zstd(b"y" * 1000, False)
    assert bytes(frames.decompress("zstd", stored, 2000, "f")) == b"x" * 1000 + b"y" * 1000
    for size in (1, 1000, 1999, 2001, 1 << 30):
        with pytest.raises(CorruptionError):
            frames.decompress("zstd", stored, size, "f")
    for cut in range(1, len(stored)):
        with pytest.raises(CorruptionError):
            frames.decompress("zstd", stored[:cut], 2000, "f")


def test_a_stream_without_a_table_stays_a_stream(tmp_path: Path) -> None:
    (tmp_path / "in.tar.zst").write_bytes(zstd(io.BytesIO(b"".join(members())).read(), False))
    assert ss.index(tmp_path / "in.tar.zst", tmp_path / "out", workers=1).shards[0].codec == "zstd-stream"
    assert found(tmp_path / "out") == SAMPLES
