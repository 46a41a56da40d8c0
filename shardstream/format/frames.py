"""Frames: the unit of compression, of range reads and of checksums.

A frame has the bytes of some samples. With the codec "zstd" it is an independent zstd frame (RFC 8878), with
the size and the checksum of its content. The file ends with the seek table of the Zstandard Seekable Format
(zstd, contrib/seekable_format/zstd_seekable_compression_format.md, version 0.1.0). With the codec "none" the
bytes are stored as they are.
"""

from __future__ import annotations

import struct
from typing import Protocol

import xxhash
import zstandard

from shardstream.errors import CorruptionError, OptionError

__all__ = ["Compressor", "check_size", "checksum", "compressor", "damaged", "decompress", "seek_table"]

WINDOW_LOG_MAX = 27
SKIPPABLE_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
_MAX_FRAMES = 0x8000000


class Compressor(Protocol):
    """A function from the raw bytes of a frame to its stored bytes; for one thread at a time."""

    def __call__(self, raw: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview: ...


def compressor(codec: str, level: int = 3) -> Compressor:
    """A compressor of frames.

    Args:
        codec: "zstd" or "none".
        level: The level of zstd, 1 to 22.

    Raises:
        OptionError: There is no such codec or level.
    """
    if codec == "none":
        return lambda raw: bytes(raw)  # a copy, since the writer uses its buffer again
    if codec != "zstd":
        raise OptionError(f"compression={codec!r}; choose 'zstd' or 'none'")
    if not 1 <= level <= 22:
        raise OptionError(f"level={level!r}; zstd levels are 1 to 22")
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=0,
        write_content_size=True,
        write_checksum=True,
        write_dict_id=False,
    )
    if parameters.window_log > WINDOW_LOG_MAX:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level,
            window_log=WINDOW_LOG_MAX,
            write_content_size=True,
            write_checksum=True,
            write_dict_id=False,
        )
    engine = zstandard.ZstdCompressor(compression_params=parameters)
    # A copy. The engine's own object lies at the begin of memory for the worst case, which is then in pieces:
    # shards of many frames that become small would keep several times their size.
    return lambda raw: bytes(memoryview(engine.compress(raw)))


def checksum(stored: bytes | bytearray | memoryview) -> int:
    """The checksum of a frame's stored bytes: xxh3_64."""
    return xxhash.xxh3_64_intdigest(stored)


def decompress(codec: str, stored: bytes | memoryview, raw_size: int, where: str) -> memoryview:
    """Decompress one frame, whose stored bytes were already checked.

    Args:
        codec: "zstd" or "none".
        stored: The bytes of the frame in the shard.
        raw_size: How many bytes its samples have, as the index says.
        where: The name of the frame, for messages.

    Returns:
        `raw_size` bytes.

    Raises:
        CorruptionError: `stored` is not exactly one frame of this size.
    """
    if codec == "none":
        if len(stored) != raw_size:
            raise CorruptionError(f"{where}: {len(stored)} bytes stored, {raw_size} expected")
        return memoryview(stored)
    if not check_size(stored, raw_size, where):
        return _decompress_all(stored, raw_size, where)
    try:
        raw = zstandard.ZstdDecompressor().decompress(
            stored, max_output_size=raw_size, read_across_frames=False, allow_extra_data=False
        )
    except (zstandard.ZstdError, MemoryError) as error:
        raise CorruptionError(damaged(where, "zstd frame", error)) from error
    if len(raw) != raw_size:
        raise CorruptionError(f"{where}: {len(raw)} bytes decompressed, {raw_size} expected")
    return memoryview(raw)


def damaged(where: str, part: str, reason: object = None) -> str:
    """The message of an error about damage.

    Args:
        where: The file.
        part: Which part of it is damaged.
        reason: Why, or None.
    """
    return f"{where}: the {part} is damaged" + (f" ({reason})" if reason is not None else "")


def _decompress_all(stored: bytes | memoryview, raw_size: int, where: str) -> memoryview:
    """Decompress several zstd frames, as a frame of an adopted archive may be."""
    raw = bytearray(raw_size)
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX).stream_reader(
            stored, read_across_frames=True
        ) as reader:
            filled = reader.readinto(raw) if raw_size else 0
            more = reader.read(1)
    except zstandard.ZstdError as error:
        raise CorruptionError(damaged(where, "zstd frame", error)) from error
    if filled != raw_size or more:
        raise CorruptionError(f"{where}: {filled + len(more)} bytes decompressed, {raw_size} expected")
    return memoryview(raw).toreadonly()


def check_size(stored: bytes | memoryview, raw_size: int, where: str) -> bool:
    """Check the sizes in the headers of one zstd frame, or of several.

    Call this before memory is allocated, since a frame of 32 KB may decompress to 1 GiB. Returns whether it
    is one frame that names its size, as all are that shardstream writes.

    Args:
        stored: The bytes of the frames.
        raw_size: How many bytes its samples have to have.
        where: The name of the frame, for messages.

    Raises:
        CorruptionError: The header is damaged, or has another size, or a frame that does not name its size
            has a window of more than 2^27 bytes.
    """
    try:
        named = zstandard.get_frame_parameters(stored).content_size
    except zstandard.ZstdError as error:
        raise CorruptionError(damaged(where, "zstd frame", error)) from error
    if named == raw_size:
        return True
    named, most = _sizes(stored, where)
    if not named <= raw_size <= named + most:
        raise CorruptionError(f"{where}: the frame's header says {named} bytes, the index {raw_size}")
    return False


def _sizes(stored: bytes | memoryview, where: str) -> tuple[int, int]:
    """The bytes that the headers of several frames name, and the most that those have that name none.

    RFC 8878, sections 3.1.1 and 3.1.2.
    """
    data, at, named, most = memoryview(stored), 0, 0, 0
    try:
        while at < len(data):
            if 0x184D2A50 <= int.from_bytes(data[at : at + 4], "little") <= 0x184D2A5F:
                at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
                continue
            header = zstandard.get_frame_parameters(data[at : at + 18])
            blocks, last = 0, False
            begin = at
            at += zstandard.frame_header_size(data[at : at + 18])
            while not last and at < len(data):
                block = int.from_bytes(data[at : at + 3], "little")
                last = bool(block & 1)
                at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
                blocks += 1
            at += 4 * header.has_checksum
            if not last or at > len(data):
                raise CorruptionError(damaged(where, "zstd frame", f"the one at byte {begin} is cut off"))
            if header.content_size == zstandard.CONTENTSIZE_UNKNOWN:
                # Not every library refuses it. A frame that names its size needs no window of its own.
                if (window := header.window_size) > 1 << WINDOW_LOG_MAX:
                    raise CorruptionError(damaged(where, "zstd frame", f"a window of {window} bytes"))
                most += blocks << 17
            else:
                named += header.content_size
    except zstandard.ZstdError as error:
        raise CorruptionError(damaged(where, "zstd frame", error)) from error
    return named, most


def seek_table(entries: list[tuple[int, int, bytes]]) -> bytes:
    """The seek table, a skippable frame that ends a shard.

    Args:
        entries: For each zstd frame its stored size and its raw size in bytes, and its last four bytes. These
            four bytes are the low 32 bits of the XXH64 of its content, which is the checksum in a seek table.

    Raises:
        OptionError: There are more frames than a seek table can list.
    """
    if len(entries) > _MAX_FRAMES:
        raise OptionError(f"{len(entries)} frames in one shard; use larger frames or smaller shards")
    table = b"".join(struct.pack("<II", stored, raw) + tail for stored, raw, tail in entries)
    footer = struct.pack("<IBI", len(entries), 0x80, SEEKABLE_MAGIC)
    return struct.pack("<II", SKIPPABLE_MAGIC, len(table) + len(footer)) + table + footer
