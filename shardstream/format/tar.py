"""Lists the members of any tar: v7, ustar, pax, and the long names and sizes of GNU.

The module `headers` makes the headers of members.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from shardstream.errors import SourceError
from shardstream.format.headers import BLOCK, TRAILER, member_header, padding
from shardstream.format.names import check_member_name, plain_name, shorten, split_name

__all__ = ["BLOCK", "TRAILER", "Member", "member_header", "padding", "scan", "split_name"]

_ZEROS = bytes(BLOCK)
_META_MAX = 1 << 20  # a pax or long-name record larger than this is hostile
_REGULAR = b"0\x007"
_DATALESS = b"123456"  # links, devices, directories and FIFOs: what their size says is not there
_KINDS = {
    b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a FIFO", b"S": "a sparse file",
    b"M": "the rest of a file of another volume", b"D": "a list of GNU's incremental dumps",
    b"V": "a label of a volume",
}  # fmt: skip


class Member(NamedTuple):
    """A member of an archive that is no directory.

    Attributes:
        name: Its name, without "./" and without double slashes.
        start: Where its headers begin in the uncompressed tar, in bytes.
        offset: Where its data begins in the uncompressed tar, in bytes.
        size: The bytes of its data.
        link: For a hard link the name of the earlier member that has its data; else "".
        problem: Why it cannot be read; "" if it can.
    """

    name: str
    start: int
    offset: int
    size: int
    link: str = ""
    problem: str = ""


def scan(
    file: BinaryIO, size: int | None = None, where: str = "archive", begin: int | None = None
) -> Iterator[Member]:
    """The members of a tar. Only headers are read.

    As GNU tar with --ignore-zeros and bsdtar, it takes tars that were joined by `cat`, and a tar that ends in
    one block of zeros. A member that cannot be read has a `problem`.

    At each member, `file` stands at the beginning of its data, which the caller may read. Data that was not
    read is skipped; if `file` cannot seek, it is read and dropped.

    Args:
        file: The uncompressed tar.
        size: The bytes of the tar, or None if they are not known.
        where: The name of the tar, for messages.
        begin: Where to begin, in bytes: at the headers of a member, if `file` can seek. None: at its
            beginning, where it stands.

    Raises:
        SourceError: The tar is damaged, or a size is beyond its end. Or it ends inside a member, or without a
            block of zeros.
    """
    seekable = file.seekable()
    position = start = begin or 0
    zeros = 0
    attributes: dict[str, str] = {}
    if begin is not None:
        file.seek(begin)
    while True:
        header = file.read(BLOCK)
        if header == _ZEROS:
            zeros += 1
            position = start = position + BLOCK
            continue
        if len(header) < BLOCK:
            if zeros and not attributes:
                if header:
                    file.read(BLOCK)  # a compressed file that is cut off here raises now
                return
            raise SourceError(
                f"{where}: the tar ends at byte {position} without its end mark; is it cut off?"
            )
        try:
            name, member_size, kind, link = _parse_header(header, position, where)
        except SourceError as error:
            if not zeros:
                raise
            raise SourceError(f"{error}; the bytes behind the end of the tar are no other tar") from error
        zeros = 0
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
            elif kind == b"g":
                if {"path", "size"} & set(_parse_pax(record[:member_size], position, where)):
                    raise SourceError(
                        f"{where}: a global pax header before byte {position} names all members"
                    )
            else:
                attributes["path" if kind == b"L" else "linkpath"] = _text(record[:member_size].rstrip(b"\0"))
            continue
        if kind == b"S":
            position += _skip_sparse_map(file, header)
        name = attributes.get("path", name)
        link = attributes.get("linkpath", link)
        if "size" in attributes:
            if not attributes["size"].isdecimal() or len(attributes["size"]) > 19:
                raise SourceError(f"{where}: a pax size of {shorten(attributes['size'])!r}")
            member_size = int(attributes["size"])
        sparse = any(key.startswith("GNU.sparse") for key in attributes)
        name = attributes.get("GNU.sparse.name", name)
        attributes = {}
        if kind in _DATALESS:
            member_size = 0
        end = position + member_size + -member_size % BLOCK
        if size is not None and end > size:
            raise SourceError(
                f"{where}: {shorten(_shown(name))!r} claims {member_size} bytes at byte {position}, beyond "
                f"the archive's {size} bytes"
            )
        directory = kind == b"5" or (kind in _REGULAR and name.endswith("/"))
        if not directory:
            problem = _problem(name, b"S" if sparse else kind)
            target = plain_name(link) if kind == b"1" else ""
            yield Member(plain_name(name), start, position, member_size, target, problem)
        if end > position:
            _skip_to(file, position, end, seekable, where)
        elif seekable:
            file.seek(end)
        position = start = end


def _problem(name: str, kind: bytes) -> str:
    if kind not in _REGULAR and kind != b"1":
        return f"it is {_KINDS.get(kind, f'a member of the unknown type {kind!r}')}, not a regular file"
    try:
        check_member_name(name)
    except SourceError as error:
        return str(error)
    return ""


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _skip_sparse_map(file: BinaryIO, header: bytes) -> int:
    """Skip the blocks behind the header of a sparse file of GNU that list its holes; returns their bytes."""
    read, more = 0, header[482]
    while more:
        block = file.read(BLOCK)
        read += BLOCK
        more = block[504] if len(block) == BLOCK else 0
    return read


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


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")  # the name is checked when its member is known


def _number(field: bytes, position: int, where: str) -> int:
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    try:
        return int(text, 8) if text else 0
    except ValueError as error:
        raise SourceError(f"{where}: no tar header at byte {position}") from error


def _parse_header(header: bytes, position: int, where: str) -> tuple[str, int, bytes, str]:
    expected = _number(header[148:156], position, where)
    total = sum(header) - sum(header[148:156]) + 8 * 32
    # Some old tars add up the bytes as signed numbers.
    if expected not in (total, total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])):
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
    link = header[157:257].split(b"\0", 1)[0]
    return _text(raw), size, kind, _text(link)


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
        if name in (b"path", b"linkpath", b"size") or name.startswith(b"GNU.sparse"):
            attributes[name.decode("ascii", "replace")] = _text(value[:-1])
        at += length
    return attributes
