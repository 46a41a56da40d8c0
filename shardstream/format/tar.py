"""Tar members to bytes, and the scan of archives, ours or others'.

Written: POSIX ustar, with a pax header where a name is longer than ustar can hold or not ASCII, or
a size is 8 GiB or more (POSIX.1-2017, pax Interchange Format). Headers are deterministic: mode
0644, uid, gid and mtime 0, no user or group name. Read: ustar, pax, and GNU long names and sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple
from zlib import adler32

from shardstream.errors import SourceError
from shardstream.format.names import check_member_name, shorten, split_name

__all__ = ["BLOCK", "TRAILER", "Member", "member_header", "padding", "scan", "split_name"]

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
_ZEROS = bytes(BLOCK)
_USTAR_MAX_SIZE = 8**11 - 1
_META_MAX = 1 << 20  # a pax or long-name record larger than this is hostile

# All but name, size and checksum; eight blanks stand for the checksum while it is summed.
_AFTER_NAME = b"0000644\0" + b"0000000\0" * 2
_AFTER_SIZE = b"00000000000\0"
_TAIL = bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
_FIXED_SUM = sum(_AFTER_NAME) + sum(_AFTER_SIZE) + 8 * 32 + sum(_TAIL)


def padding(size: int) -> bytes:
    """The zero bytes that fill a member of `size` bytes up to whole blocks."""
    return _ZEROS[: -size % BLOCK]


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    size_text = b"%011o\0" % size
    # The low half of an Adler-32 is 1 + the sum of the bytes, modulo 65521: at most 112 bytes of
    # ASCII stay below that. Summing in Python took a third of the time of a small sample.
    total = _FIXED_SUM + (adler32(name + size_text) & 0xFFFF) - 1 + kind[0]
    return b"%b%b%b%b%06o\0 %b%b" % (
        name.ljust(100, b"\0"), _AFTER_NAME, size_text, _AFTER_SIZE, total, kind, _TAIL,
    )  # fmt: skip


def _pax_record(name: bytes, value: bytes) -> bytes:
    body = b" " + name + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return b"%d" % length + body


def member_header(name: str, size: int) -> bytes:
    """The header blocks of a file member: 512 bytes, or 1,536 and more with a pax header."""
    raw = name.encode()
    if len(raw) <= 100 and raw.isascii() and size <= _USTAR_MAX_SIZE:
        return _header(raw, size, b"0")
    records = b""
    if len(raw) > 100 or not raw.isascii():
        records += _pax_record(b"path", raw)
    if size > _USTAR_MAX_SIZE:
        records += _pax_record(b"size", b"%d" % size)
    short = raw.decode("ascii", "replace").encode("ascii", "replace")[:100]
    return b"".join(
        (
            _header(b"PaxHeaders/member", len(records), b"x"),
            records,
            padding(len(records)),
            _header(short, min(size, _USTAR_MAX_SIZE), b"0"),
        )
    )


class Member(NamedTuple):
    """A file in an archive: its data lies at [offset, offset + size) of the uncompressed tar."""

    name: str
    start: int  # where its headers begin
    offset: int
    size: int


def scan(file: BinaryIO, size: int | None = None, where: str = "archive") -> Iterator[Member]:
    """Yield the regular files of the tar in `file`, reading headers only.

    `size` is the length of the uncompressed archive where it is known. After each yield the file is
    positioned at the member's data, and it may be read there; where `file` cannot seek, data that
    was not read is read and dropped. Links, devices and FIFOs, names that are absolute or leave
    their folder, and sizes beyond the archive raise SourceError; so does an archive that ends
    inside a member, or without the two zero blocks that end a tar.
    """
    seekable = file.seekable()
    position = 0
    start = 0
    attributes: dict[str, str] = {}
    while True:
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise SourceError(
                f"{where}: the tar ends at byte {position} without its end mark; is it cut off?"
            )
        if header == _ZEROS:
            if file.read(BLOCK) != _ZEROS:
                raise SourceError(f"{where}: a lone zero block at byte {position}, not the end of a tar")
            return
        name, member_size, kind = _parse_header(header, position, where)
        position += BLOCK
        if kind in b"xgLK":
            if member_size > _META_MAX:
                raise SourceError(f"{where}: a header record of {member_size} bytes at byte {position}")
            record = file.read(member_size + -member_size % BLOCK)
            if len(record) < member_size:
                raise SourceError(f"{where}: the tar ends inside a header at byte {position}")
            position += member_size + -member_size % BLOCK
            if kind == b"x":
                attributes.update(_parse_pax(record[:member_size], position, where))
            elif kind == b"L":
                attributes["path"] = _text(record[:member_size].rstrip(b"\0"), position, where)
            elif kind == b"K":
                attributes["linkpath"] = ""
            continue
        name = attributes.get("path", name)
        if "size" in attributes:
            if not attributes["size"].isdecimal() or len(attributes["size"]) > 19:
                raise SourceError(f"{where}: a pax size of {shorten(attributes['size'])!r}")
            member_size = int(attributes["size"])
        if any(key.startswith("GNU.sparse") for key in attributes):
            raise SourceError(f"{where}: {shorten(name)!r} is a sparse file; repack it without --sparse")
        attributes = {}
        if kind in b"5":
            check_member_name(name.rstrip("/") or "/", where)
            start = position
            continue
        if kind not in b"0\x007":
            raise SourceError(
                f"{where}: {shorten(name)!r} is not a regular file (type {kind!r}); links and "
                "devices are refused"
            )
        check_member_name(name, where)
        end = position + member_size + -member_size % BLOCK
        if size is not None and end > size:
            raise SourceError(
                f"{where}: {shorten(name)!r} claims {member_size} bytes at byte {position}, beyond "
                f"the archive's {size} bytes"
            )
        yield Member(name, start, position, member_size)
        _skip_to(file, position, end, seekable, where)
        position = start = end


def _skip_to(file: BinaryIO, begin: int, end: int, seekable: bool, where: str) -> None:
    if seekable:
        file.seek(end)
        return
    here = file.tell()
    if not begin <= here <= end:
        raise SourceError(f"{where}: read past a member")
    while here < end:
        chunk = file.read(min(1 << 20, end - here))
        if not chunk:
            raise SourceError(f"{where}: the tar ends inside the member at byte {begin}")
        here += len(chunk)


def _text(raw: bytes, position: int, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{where}: a name before byte {position} is not UTF-8") from error


def _number(field: bytes, position: int, where: str) -> int:
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    try:
        return int(text, 8) if text else 0
    except ValueError as error:
        raise SourceError(f"{where}: no tar header at byte {position}") from error


def _parse_header(header: bytes, position: int, where: str) -> tuple[str, int, bytes]:
    expected = _number(header[148:156], position, where)
    if sum(header) - sum(header[148:156]) + 8 * 32 != expected:
        raise SourceError(f"{where}: no valid tar header at byte {position} (its checksum is wrong)")
    raw = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
        if prefix:
            raw = prefix + b"/" + raw
    size = _number(header[124:136], position, where)
    if size < 0 or size >= 1 << 62:
        raise SourceError(f"{where}: a member of {size} bytes at byte {position}")
    kind = header[156:157]
    # A pax or long name may replace it, so its own bytes need not be text yet.
    name = raw.decode("utf-8", "surrogateescape")
    return name, size, kind


def _parse_pax(record: bytes, position: int, where: str) -> dict[str, str]:
    attributes: dict[str, str] = {}
    at = 0
    while at < len(record):
        space = record.find(b" ", at, at + 20)
        if space < 0 or not record[at:space].isdigit():
            raise SourceError(f"{where}: a damaged pax header before byte {position}")
        length = int(record[at:space])
        entry = record[space + 1 : at + length]
        name, equals, value = entry.partition(b"=")
        if not equals or not value.endswith(b"\n") or at + length > len(record):
            raise SourceError(f"{where}: a damaged pax header before byte {position}")
        if name in (b"path", b"size") or name.startswith(b"GNU.sparse"):
            attributes[name.decode("ascii", "replace")] = _text(value[:-1], position, where)
        at += length
    return attributes
