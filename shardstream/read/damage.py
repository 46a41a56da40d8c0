"""The error for bytes that are not the bytes that were packed."""

from __future__ import annotations

from shardstream.errors import CorruptionError

__all__ = ["wrong_checksum"]


def wrong_checksum(
    where: str, how: str = "damaged", remedy: str = "restore the shard or repack"
) -> CorruptionError:
    """The error for bytes whose checksum is not the one in the index or the manifest.

    Args:
        where: Which bytes they are.
        how: What happened to them.
        remedy: What the user can do.
    """
    return CorruptionError(f"{where}: {how} (wrong checksum); {remedy}")
