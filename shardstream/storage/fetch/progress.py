"""What was asked for in this epoch."""

from __future__ import annotations

import threading

from shardstream.storage.cache.blocks import Block

__all__ = ["EpochProgress"]


class EpochProgress:
    """The frames and the bytes that were given since an epoch began; may be used by many threads.

    Attributes:
        bytes: Bytes of blocks.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._frames: dict[str, set[int]] = {}  # by group
        self._lock = threading.Lock()

    def add(self, block: Block, size: int = 0) -> None:
        """A block was given, with so many bytes; or it is in memory to be given, without any."""
        number = block.name.partition(".")[0]
        with self._lock:
            self.bytes += size
            if number.isdigit():
                self._frames.setdefault(block.group, set()).add(int(number))

    def frames(self, group: str) -> list[int]:
        """The frames of a group that were given, or are in memory to be given."""
        with self._lock:
            return list(self._frames.get(group, ()))

    def restart(self) -> None:
        """An epoch begins."""
        with self._lock:
            self.bytes = 0
            self._frames.clear()
