"""TFRecord: checksums, cut files, changed bytes, and messages that are no Example."""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardstream.errors import ShardstreamError, SourceError
from shardstream.packing.sources import Reject, Sample, make_source, recognise
from shardstream.packing.sources.crc32c import crc32c, masked
from shardstream.packing.sources.example import parse
from shardstream.storage.inputs import expand
from shardstream.testing.sources import read_source
from tests.data.foreign import make

FOREIGN = Path(make.__file__).parent / "tfrecord"


def read(path: Path, target: int = 1 << 30) -> list[Sample | Reject]:
    return read_source(make_source("tfrecord"), expand([str(path)]), target)


def record(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked(head)) + data + struct.pack("<I", masked(data))


@given(st.binary())
def test_the_checksum_is_that_of_another_implementation(data: bytes) -> None:
    assert crc32c(data) == google_crc32c.value(data)


@pytest.mark.parametrize("name", ["rows", "rowsgzip", "rowszlib"])
@pytest.mark.parametrize("target", [1, 1 << 30])
def test_a_cut_file_is_an_error_wherever_it_is_cut(tmp_path: Path, name: str, target: int) -> None:
    whole = (FOREIGN / f"{name}.tfrecord").read_bytes()
    length = struct.unpack_from("<Q", whole)[0] + 16
    path = tmp_path / "x.tfrecord"
    for size in range(1, len(whole), 7):
        if name == "rows" and size % length == 0:
            continue
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"x\.tfrecord"):
            read(path, target)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 1300), bit=st.integers(0, 7))
def test_any_changed_bit_of_a_plain_file_is_seen(tmp_path: Path, at: int, bit: int) -> None:
    data = bytearray((FOREIGN / "rows.tfrecord").read_bytes())
    data[at] ^= 1 << bit
    (tmp_path / "x.tfrecord").write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.tfrecord"):
        read(tmp_path / "x.tfrecord")


def test_a_record_that_is_no_example_is_rejected_by_its_place(tmp_path: Path) -> None:
    whole = (FOREIGN / "rows.tfrecord").read_bytes()
    (tmp_path / "x.tfrecord").write_bytes(record(b"\x12\x00") + record(b"hello") + whole)
    assert recognise(expand([str(tmp_path)])) == "tfrecord"
    found = read(tmp_path / "x.tfrecord")
    rejects = [item for item in found if isinstance(item, Reject)]
    assert [reject.where.rpartition(", ")[2] for reject in rejects] == ["byte 0", "byte 18"]
    assert "not a tf.train.Example: its message has field 2" in rejects[0].reason
    assert len(found) == 9
    (tmp_path / "x.tfrecord").write_bytes(b"no records at all")
    with pytest.raises(SourceError, match="is it a TFRecord file"):
        read(tmp_path / "x.tfrecord")


def test_an_empty_file_has_no_samples(tmp_path: Path) -> None:
    (tmp_path / "x.tfrecord").touch()
    assert read(tmp_path / "x.tfrecord") == []


@given(st.binary(max_size=200))
def test_any_bytes_are_an_example_or_a_typed_error(data: bytes) -> None:
    try:
        assert isinstance(parse(data), dict)
    except (ShardstreamError, UnicodeDecodeError, struct.error):
        return


def test_numbers_that_are_not_packed_and_negative_ones_are_read() -> None:
    minus = b"\xff" * 9 + b"\x01"
    feature = b"\x1a" + bytes([2 + 1 + len(minus)]) + b"\x08\x05\x08" + minus
    entry = b"\x0a\x01n\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    assert parse(b"\x0a" + bytes([len(features)]) + features) == {"n": [5, -1]}
