"""How shards are cut and compressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardstream.errors import OptionError
from shardstream.format.sizes import parse_size

__all__ = ["AUTO", "TOO_MANY_SHARDS", "Codec", "Layout", "fitting_shard_size"]

Codec = Literal["zstd", "none"]
AUTO = "auto"  # as the size of shards: by the size of the input
_SMALLEST, _LARGEST = 64 << 20, 2 << 30  # bytes of such a shard
TOO_MANY_SHARDS = 50_000  # all processes of a training read the list of them


@dataclass(frozen=True)
class Layout:
    """How shards are cut and compressed.

    Args:
        codec: "zstd" or "none".
        level: The level of zstd, 1 to 22.
        frame_size: Bytes of samples in a frame before compression, at most 1 GiB.
        shard_size: Bytes of samples in a shard before compression, at least `frame_size`.

    Raises:
        OptionError: A size is wrong.
    """

    codec: Codec = "zstd"
    level: int = 3
    frame_size: int = 1 << 20
    shard_size: int = 64 << 20

    def __post_init__(self) -> None:
        if self.frame_size > 1 << 30:
            raise OptionError(f"frame_size={self.frame_size} must be at most 1 GiB")
        if self.frame_size > self.shard_size:
            raise OptionError(f"frame_size={self.frame_size} must be at most shard_size={self.shard_size}")

    @classmethod
    def of_sizes(cls, frame_size: str | int | None, shard_size: str | int | None, level: int = 3) -> Layout:
        """The layout of sizes as a user gives them. If only one is given, the default of the other fits it.

        Args:
            frame_size: A size such as "1MiB". None: 1 MiB, or less if `shard_size` is less.
            shard_size: A size such as "64MiB". None: 64 MiB, or more if `frame_size` is more.
            level: The level of zstd, 1 to 22.

        Raises:
            OptionError: A size is wrong.
        """
        if shard_size == AUTO:
            raise OptionError(
                "shard_size='auto' needs files, whose sizes are known; give a size like '256MiB'"
            )
        frame = cls.frame_size if frame_size is None else parse_size(frame_size, "frame_size")
        shard = cls.shard_size if shard_size is None else parse_size(shard_size, "shard_size")
        if frame_size is None:
            frame = min(frame, shard)
        elif shard_size is None:
            shard = max(frame, shard)
        return cls(level=level, frame_size=frame, shard_size=shard)


def fitting_shard_size(input_bytes: int, frame_size: int) -> int:
    """The size of shards for an input: the smallest that makes fewer than 50,000 shards.

    Args:
        input_bytes: The bytes of the input.
        frame_size: The bytes of a frame, of which a shard has at least one.

    Returns:
        Bytes, a power of two from 64 MiB to 2 GiB.
    """
    size = _SMALLEST
    while size < _LARGEST and (size < frame_size or -(-input_bytes // size) >= TOO_MANY_SHARDS):
        size *= 2
    return size
