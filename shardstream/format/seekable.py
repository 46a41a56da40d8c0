"""Reads the seek table of a file in the Zstandard Seekable Format, as `frames.seek_table` writes it.

zstd, contrib/seekable_format/zstd_seekable_compression_format.md, version 0.1.0.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from shardstream.format.frames import SEEKABLE_MAGIC, SKIPPABLE_MAGIC

__all__ = ["FOOTER", "StoredFrame", "entries", "table_size"]

FOOTER = 9  # bytes
_RESERVED = 0x7C


class StoredFrame(NamedTuple):
    """A zstd frame of a file: where its stored and its raw bytes begin and end."""

    begin: int
    end: int
    raw_begin: int
    raw_end: int


def table_size(footer: bytes) -> int:
    """The bytes of the seek table at the end of a file; 0 if there is none.

    Args:
        footer: The last `FOOTER` bytes of the file.
    """
    if len(footer) != FOOTER:
        return 0
    count, descriptor, magic = struct.unpack("<IBI", footer)
    if magic != SEEKABLE_MAGIC or descriptor & _RESERVED:
        return 0
    return 8 + int(count) * (12 if descriptor & 0x80 else 8) + FOOTER


def entries(table: bytes, size: int) -> list[StoredFrame] | None:
    """The frames that a seek table lists; None if it does not fit its file.

    Args:
        table: The table with its header and its footer.
        size: The bytes of the file.
    """
    magic, length = struct.unpack_from("<II", table)
    if magic != SKIPPABLE_MAGIC or length != len(table) - 8:
        return None
    step = 12 if table[-5] & 0x80 else 8
    found: list[StoredFrame] = []
    at = raw = 0
    for position in range(8, len(table) - FOOTER, step):
        stored, content = struct.unpack_from("<II", table, position)
        found.append(StoredFrame(at, at + stored, raw, raw + content))
        at, raw = at + stored, raw + content
    return found if at == size - len(table) else None
