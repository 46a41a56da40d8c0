"""Frames: the unit of compression, of range reads and of checksums.

The zstd codec writes one independent zstd frame (RFC 8878) per run of samples, each with its content
size and checksum in its header, and closes the file with the seek table of the Zstandard Seekable
Format (zstd, contrib/seekable_format/zstd_seekable_compression_format.md, version 0.1.0). The none
codec stores the same bytes as they are.
"""

from __future__ import annotations

import struct
from typing import Protocol

import xxhash
import zstandard

from shardstream.errors import CorruptionError, OptionError

__all__ = ["Compressor", "check_size", "checksum", "compressor", "decompress", "seek_table"]

WINDOW_LOG_MAX = 27
_SKIPPABLE_MAGIC = 0x184D2A5E
_SEEKABLE_MAGIC = 0x8F92EAB1
_MAX_FRAMES = 0x8000000


class Compressor(Protocol):
    """Turns the raw bytes of one frame into its stored bytes. Not shared between threads."""

    def __call__(self, raw: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview: ...


def compressor(codec: str, level: int = 3) -> Compressor:
    """The compressor of a codec, "zstd" or "none"."""
    if codec == "none":
        return lambda raw: bytes(raw)  # the writer uses its buffer again
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
    return lambda raw: engine.compress(raw)


def checksum(stored: bytes | bytearray | memoryview) -> int:
    """The checksum of a frame's stored bytes: xxh3_64."""
    return xxhash.xxh3_64_intdigest(stored)


def decompress(codec: str, stored: bytes | memoryview, raw_size: int, where: str) -> memoryview:
    """The `raw_size` raw bytes of one frame whose stored bytes were already checked.

    Raises CorruptionError, naming `where`, if the frame is not exactly one zstd frame of that size.
    """
    if codec == "none":
        if len(stored) != raw_size:
            raise CorruptionError(f"{where}: {len(stored)} bytes stored, {raw_size} expected")
        return memoryview(stored)
    check_size(stored, raw_size, where)
    try:
        raw = zstandard.ZstdDecompressor().decompress(
            stored, max_output_size=raw_size, read_across_frames=False, allow_extra_data=False
        )
    except (zstandard.ZstdError, MemoryError) as error:
        raise CorruptionError(f"{where}: the zstd frame is damaged ({error})") from error
    if len(raw) != raw_size:
        raise CorruptionError(f"{where}: {len(raw)} bytes decompressed, {raw_size} expected")
    return memoryview(raw)


def check_size(stored: bytes | memoryview, raw_size: int, where: str) -> None:
    """Raise CorruptionError unless a zstd frame's header says that it holds `raw_size` bytes.

    To be called before anything is allocated: 32 KB can claim 1 GiB.
    """
    try:
        claimed = zstandard.get_frame_parameters(stored).content_size
    except zstandard.ZstdError as error:
        raise CorruptionError(f"{where}: the zstd frame is damaged ({error})") from error
    if claimed != raw_size:
        raise CorruptionError(f"{where}: the frame's header says {claimed} bytes, the index {raw_size}")


def seek_table(entries: list[tuple[int, int, bytes]]) -> bytes:
    """The skippable frame that ends a shard.

    `entries` holds for each zstd frame its stored size, its raw size, and its last four bytes, which
    are the low 32 bits of the XXH64 of its content, as the seek table wants them.
    """
    if len(entries) > _MAX_FRAMES:
        raise OptionError(f"{len(entries)} frames in one shard; use larger frames or smaller shards")
    table = b"".join(struct.pack("<II", stored, raw) + tail for stored, raw, tail in entries)
    footer = struct.pack("<IBI", len(entries), 0x80, _SEEKABLE_MAGIC)
    return struct.pack("<II", _SKIPPABLE_MAGIC, len(table) + len(footer)) + table + footer
