"""What holds for any names and bytes: tar members, frames, keys and sizes come back as they went in."""

from __future__ import annotations

import io
import tarfile

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from shardstream.errors import CorruptionError, ShardstreamError, SourceError
from shardstream.format import frames
from shardstream.format.index import ShardIndex
from shardstream.format.manifest import Manifest
from shardstream.format.names import check_key, escape_key, split_name, unescape_key
from shardstream.format.tar import TRAILER, member_header, padding, scan

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
keys = st.text(max_size=60).map(escape_key)
members = st.lists(st.tuples(keys, st.binary(max_size=2_000)), unique_by=lambda item: item[0], max_size=8)


def archive(items: list[tuple[str, bytes]]) -> bytes:
    parts = [member_header(f"{key}.bin", len(data)) + data + padding(len(data)) for key, data in items]
    return b"".join(parts) + TRAILER


@given(members)
def test_tarfile_reads_the_members_that_we_write(items: list[tuple[str, bytes]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive(items))) as tar:
        found = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert found == [(f"{key}.bin", data) for key, data in items]


@given(members, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_the_scan_reads_the_members_that_tarfile_writes(items: list[tuple[str, bytes]], kind: int) -> None:
    file = io.BytesIO()
    try:
        with tarfile.open(fileobj=file, mode="w", format=kind, encoding="utf-8") as tar:
            for key, data in items:
                member = tarfile.TarInfo(f"{key}.bin")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    except ValueError:
        return  # ustar cannot hold such a name
    raw = file.getvalue()
    found = [
        (member.name, raw[member.offset : member.offset + member.size]) for member in scan(io.BytesIO(raw))
    ]
    assert found == [(f"{key}.bin", data) for key, data in items]


@given(members.filter(len), st.data())
def test_an_archive_cut_anywhere_is_refused(items: list[tuple[str, bytes]], data: st.DataObject) -> None:
    raw = archive(items)
    cut = data.draw(st.integers(0, len(raw) - 513))  # one block of zeros at the end is enough
    with pytest.raises(SourceError, match="name-of-it"):
        list(scan(io.BytesIO(raw[:cut]), cut, "name-of-it"))


@given(st.binary(max_size=4_000))
def test_any_bytes_scan_to_members_or_a_typed_error(raw: bytes) -> None:
    try:
        for member in scan(io.BytesIO(raw), len(raw), "odd"):
            assert 0 <= member.offset <= member.offset + member.size <= len(raw)
    except SourceError as error:
        assert "odd" in str(error)  # noqa: PT017


@given(st.text(max_size=300))
@example("")
@example("\0")
@example("/\0/%/./..")
def test_escaping_is_reversible_and_gives_valid_keys(original: str) -> None:
    key = escape_key(original)
    assert unescape_key(key) == original
    if len(key.encode()) <= 1024:
        assert check_key(key) == key
    assert split_name(f"{key}.a.b") == (key, "a.b")


@given(st.binary(max_size=100_000), st.integers(1, 9))
def test_a_frame_comes_back_and_states_its_size_and_checksum(raw: bytes, level: int) -> None:
    stored = bytes(frames.compressor("zstd", level)(raw))
    header = zstandard.get_frame_parameters(stored)
    assert header.content_size == len(raw)
    assert header.has_checksum
    assert bytes(frames.decompress("zstd", stored, len(raw), "frame")) == raw
    for size in (len(raw) - 1, len(raw) + 1, 1 << 60):
        with pytest.raises(CorruptionError):
            frames.decompress("zstd", stored, size, "frame")


@given(st.binary(max_size=500))
def test_any_bytes_are_no_index_and_no_manifest_or_a_typed_error(raw: bytes) -> None:
    expected = {"fields": 1, "samples": 1, "frames": 1, "shard_bytes": 9, "raw_bytes": 9}
    with pytest.raises(ShardstreamError, match="odd"):
        ShardIndex.from_bytes(raw, where="odd", **expected)
    with pytest.raises(ShardstreamError, match="odd"):
        Manifest.from_bytes(raw, "odd")
