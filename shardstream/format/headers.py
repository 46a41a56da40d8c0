"""Writes the headers of tar members.

Members are written as POSIX ustar. They have a pax header (POSIX.1-2017, pax Interchange Format) if the name
is too long for ustar or not ASCII, or if the size is 8 GiB or more. Headers are deterministic: mode 0644,
uid, gid and mtime 0, no user or group name.
"""

from __future__ import annotations

import functools
from zlib import adler32

__all__ = [
    "BLOCK", "MAX_SIZE", "TRAILER", "header_end", "header_middle", "header_parts", "member_header", "padding",
]  # fmt: skip

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
MAX_SIZE = 8**11 - 1  # of a member without a pax header

# A header without name, size and checksum. While the checksum is computed, it counts as eight spaces.
_AFTER_NAME = b"0000644\0" + b"0000000\0" * 2
_AFTER_SIZE = b"00000000000\0"
_TAIL = bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
_FIXED_SUM = sum(_AFTER_NAME) + sum(_AFTER_SIZE) + 8 * 32 + sum(_TAIL)
_FILLED = tuple(bytes(count) for count in range(BLOCK))


def padding(size: int) -> bytes:
    """The zero bytes that fill a member of `size` bytes up to whole blocks."""
    return _FILLED[-size % BLOCK]


def _header(name: bytes, size: int, kind: bytes) -> tuple[bytes, bytes, bytes]:
    middle, known = header_middle(size)
    # The low half of an Adler-32 is 1 + the sum of the bytes, modulo 65521. The sum of 100 bytes of ASCII is
    # less than that. To sum in Python would be a third of the time of a small sample.
    return name.ljust(100, b"\0"), middle, header_end((adler32(name) & 0xFFFF) - 1 + known, kind)


@functools.lru_cache(1 << 10)
def header_middle(size: int) -> tuple[bytes, int]:
    """What stands between the name and the checksum, and the sum of all bytes but the name and the kind."""
    text = b"%011o\0" % size
    return _AFTER_NAME + text + _AFTER_SIZE, _FIXED_SUM + sum(text)


@functools.lru_cache(1 << 10)
def header_end(total: int, kind: bytes) -> bytes:
    """What stands behind the name and the size. `total` is the sum of all bytes but the kind."""
    return b"%06o\0 %b%b" % (total + kind[0], kind, _TAIL)


def _pax_record(name: bytes, value: bytes) -> bytes:
    body = b" " + name + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return b"%d" % length + body


def member_header(name: str, size: int) -> bytes:
    """The header blocks of a file member: 512 bytes, or 1,536 and more with a pax header."""
    return b"".join(header_parts(name.encode(), size))


def header_parts(name: bytes, size: int) -> tuple[bytes, ...]:
    """The header blocks of a file member in parts, since whoever joins a frame need not join each header.

    Args:
        name: The name of the member in UTF-8.
        size: The bytes of its data.

    Returns:
        Three parts of 512 bytes in all; or with a pax header eight parts of 1,536 bytes and more.
    """
    if len(name) <= 100 and name.isascii() and size <= MAX_SIZE:
        return _header(name, size, b"0")
    records = b""
    if len(name) > 100 or not name.isascii():
        records += _pax_record(b"path", name)
    if size > MAX_SIZE:
        records += _pax_record(b"size", b"%d" % size)
    short = name.decode("ascii", "replace").encode("ascii", "replace")[:100]
    return (
        *_header(b"PaxHeaders/member", len(records), b"x"),
        records,
        padding(len(records)),
        *_header(short, min(size, MAX_SIZE), b"0"),
    )
