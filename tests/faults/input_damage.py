"""Random damage to the files of other tools, also behind their compression and their checksums."""

from __future__ import annotations

import bz2
import gzip
import random
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import zstandard

from shardstream.packing.sources.crc32c import masked
from tests.faults.test_mutations import damage

__all__ = ["damaged"]

# What readers of numbers, of JSON and of text trip over.
NUMBERS = (b"0", b"-1", b"65536", b"4294967295", b"9223372036854775808", b"1e400", b"1" * 5000, b"null")
TOKENS = (
    b"[" * 3000, b'{"a":' * 3000, b'"', b"\\", b"\\ud800", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"NaN",
    b"{}", b"[]", b",", b"\n", b"\r", b"\t", b"../../x", b"/", b"..", b'"id": ', b"null",
)  # fmt: skip
_DIGITS = re.compile(rb"\d+")
_LIMITS = (
    0,
    1,
    7,
    255,
    1 << 15,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    (1 << 63) - 1,
    (1 << 64) - 1,
)

Damage = Callable[[bytes, random.Random], bytes]


def digits(data: bytes, rng: random.Random) -> bytes:
    """Another number in a text."""
    found = list(_DIGITS.finditer(data))
    if not found:
        return damage(data, rng)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(NUMBERS) + data[match.end() :]


def token(data: bytes, rng: random.Random) -> bytes:
    """Some letters more, or in the place of others."""
    at = rng.randrange(len(data))
    new = rng.choice(TOKENS)
    return data[:at] + new + data[at + rng.choice((0, 1, len(new))) :]


def integer(data: bytes, rng: random.Random) -> bytes:
    """Another integer in a binary file, mostly near its beginning or its end, where headers are."""
    width = rng.choice((1, 2, 4, 8))
    near = min(len(data), rng.choice((32, 256, len(data))))
    at = rng.randrange(near)
    at = (at if rng.random() < 0.5 else len(data) - near + at) // width * width
    limit = 1 << 8 * width
    value = rng.choice((*_LIMITS, len(data), rng.randrange(limit))) % limit
    return data[:at] + value.to_bytes(width, rng.choice(("little", "big"))) + data[at + width :]


def twice(data: bytes, rng: random.Random) -> bytes:
    """A part of it stands there twice."""
    at, length = rng.randrange(len(data)), rng.choice((1, 16, 512, 1024, len(data)))
    return data[:at] + data[at : at + length] + data[at:]


def tar_header(data: bytes, rng: random.Random) -> bytes:
    """Another byte in the header of a member, and the checksum that fits."""
    starts = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not starts:
        return damage(data, rng)
    at = rng.choice(starts)
    header = bytearray(data[at : at + 512])
    fields = [(0, 100), (124, 12), (156, 1), (157, 100), (257, 8)]
    # What GNU's format has in the place of a prefix is taken for one by Python's tarfile.
    fields += [(345, 155)] if header[257:263] == b"ustar\0" else []
    begin, size = rng.choice(fields)
    place = begin + rng.randrange(min(size, rng.choice((1, 12, size))))
    header[place] = rng.choice((*b"01567LKxgSM/.\0 \x80\xff", rng.randrange(256)))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def record(data: bytes, rng: random.Random) -> bytes:
    """A damaged record of a TFRecord file, with checksums that fit."""
    parts, at = [], 0
    while at + 16 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 16 + length > len(data):
            return damage(data, rng)
        parts.append(data[at + 12 : at + 12 + length])
        at += 16 + length
    chosen = rng.randrange(len(parts))
    parts[chosen] = rng.choice((damage, integer, twice))(parts[chosen] or b"\0", rng)
    out = b""
    for part in parts:
        head = struct.pack("<Q", len(part))
        out += head + struct.pack("<I", masked(head)) + part + struct.pack("<I", masked(part))
    return out


def _repacked(unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes], inner: Damage) -> Damage:
    def apply(data: bytes, rng: random.Random) -> bytes:
        return pack(inner(unpack(data), rng))

    return apply


def _arrow_codec(name: str) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    import pyarrow as pa

    def unpack(data: bytes) -> bytes:
        return pa.decompress(data, 1 << 16, name, asbytes=True).rstrip(b"\0")

    return unpack, lambda data: pa.compress(data, name, asbytes=True)


def _behind_compression(path: Path, data: bytes, inner: Damage) -> Damage | None:
    """The same damage to what a compressed file holds; None if it is not compressed."""
    if data.startswith(b"\x1f\x8b"):
        return _repacked(gzip.decompress, lambda data: gzip.compress(data, mtime=0), inner)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        unpack = lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)  # noqa: E731
        return _repacked(unpack, zstandard.ZstdCompressor().compress, inner)
    if data.startswith(b"BZh"):
        return _repacked(bz2.decompress, bz2.compress, inner)
    if "zlib" in path.name:
        return _repacked(zlib.decompress, zlib.compress, inner)
    if path.suffix == ".snappy":
        return _repacked(*_arrow_codec("snappy"), inner)
    return None


def damaged(path: Path, data: bytes, rng: random.Random) -> bytes:
    """`data` with one random mutation, which may be behind its compression and its checksums.

    Args:
        path: The file that it is. Its name shows what can be done to it.
        data: Its bytes.
        rng: Where chance comes from.
    """
    inner = rng.choice((damage, damage, damage, integer, integer, token, digits, twice))
    if ".tar" in path.name and rng.random() < 0.5:
        inner = tar_header
    if "tfrecord" in path.name and rng.random() < 0.5:
        inner = record
    found = _behind_compression(path, data, inner)
    if found is not None and (inner in (tar_header, record) or rng.random() < 0.6):
        return found(data, rng)
    return inner(data, rng)
