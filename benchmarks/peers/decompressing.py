"""How floors and ceilings decompress our frames: by the quickest library that is here, as ours does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["decompressing"]


def decompressing() -> Callable[[Any, Any], int]:
    """A function (stored, into) for one thread: it fills memory, and returns how many bytes that is."""
    import zstandard

    from shardstream.read.system_zstd import SystemZstd, library

    found = library()
    if found is not None:
        return SystemZstd(found).fill
    context = zstandard.ZstdDecompressor()
    return lambda stored, into: int(context.stream_reader(stored, read_across_frames=True).readinto(into))
