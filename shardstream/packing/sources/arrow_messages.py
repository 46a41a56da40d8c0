"""Where the record batches of an Arrow file are, so that a large file is cut between them.

A stream of Arrow is messages one after another: 4 bytes ff, the size of the metadata in 4 bytes, the
metadata, which is a flatbuffer, and the body, whose size the metadata says. Metadata of size 0 ends it. A
file of Arrow is `ARROW1`, two zeros, the same messages, and a footer with `ARROW1`. Source: "Encapsulated
message format" of the Arrow columnar format, and Message.fbs.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

__all__ = ["BATCH", "DICTIONARY", "END", "MAGIC", "SCHEMA", "Message", "Part", "messages"]

MAGIC = b"ARROW1"
SCHEMA, DICTIONARY, BATCH = 1, 2, 3  # MessageHeader
END = -1  # the end of the stream, which is no message
_CONTINUES = 0xFFFFFFFF
_LONGEST = 64 << 20  # bytes of metadata


class Message(NamedTuple):
    """A message: what it has, its first byte and the byte behind its body, and the rows of a record batch."""

    kind: int
    start: int
    end: int
    rows: int


def messages(file: BinaryIO, size: int) -> Iterator[Message]:
    """The messages of a file, and END. They stop before END if they cannot be followed, or are cut off.

    Args:
        file: The file, which can seek.
        size: Its bytes.
    """
    file.seek(0)
    at = 8 if file.read(len(MAGIC)) == MAGIC else 0
    footer = at > 0
    while at + 8 <= size:
        file.seek(at)
        mark, length = struct.unpack("<II", file.read(8).ljust(8, b"\0"))
        if mark == _CONTINUES and length == 0:
            file.seek(-len(MAGIC), io.SEEK_END)
            if not footer or file.read() == MAGIC:
                yield Message(END, at, at + 8, 0)
            return
        if mark != _CONTINUES or not 0 < length <= min(_LONGEST, size - at):
            return
        try:
            kind, body, rows = _message(file.read(length))
        except (struct.error, IndexError):
            return
        end = at + 8 + length + body
        if body < 0 or rows < 0 or end > size:
            return
        yield Message(kind, at, end, rows)
        at = end


def _message(data: bytes) -> tuple[int, int, int]:
    """What a message has, the bytes of its body, and the rows of a record batch."""
    table = _number("<I", data, 0)
    kind = _field(data, table, 1, "<B")
    rows = 0
    if kind == BATCH:
        at = table + _offset(data, table, 2)
        rows = _field(data, at + _number("<I", data, at), 0, "<q")
    return kind, _field(data, table, 3, "<q"), rows


def _field(data: bytes, table: int, number: int, layout: str) -> int:
    offset = _offset(data, table, number)
    return _number(layout, data, table + offset) if offset else 0


def _offset(data: bytes, table: int, number: int) -> int:
    vtable = table - _number("<i", data, table)
    at = 4 + 2 * number
    return _number("<H", data, vtable + at) if at < _number("<H", data, vtable) else 0


def _number(layout: str, data: bytes, at: int) -> int:
    if at < 0:
        raise IndexError(at)
    return int(struct.unpack_from(layout, data, at)[0])


class Part(io.RawIOBase):
    """Two parts of a file as one: its schema with the dictionaries, and some of its record batches.

    Args:
        file: The file.
        head: The bytes from and to which the schema and the dictionaries are.
        body: The bytes from and to which the record batches are.
    """

    def __init__(self, file: BinaryIO, head: tuple[int, int], body: tuple[int, int]) -> None:
        self._file = file
        self._parts = [head, body]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._parts:
            at, end = self._parts[0]
            if at < end:
                self._file.seek(at)
                data = self._file.read(min(len(buffer), end - at))
                buffer[: len(data)] = data
                self._parts[0] = (at + len(data), end)
                return len(data)
            del self._parts[0]
        return 0
