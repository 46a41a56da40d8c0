"""Frames of shards whose files are on this machine: read from the mapped files, each verified once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError, StorageError
from shardstream.format import frames
from shardstream.format.index import ShardIndex
from shardstream.read.damage import wrong_checksum
from shardstream.read.shard_maps import Files, Version
from shardstream.storage.transport.backends import Data

__all__ = ["LocalFrames", "check_frame"]


class LocalFrames:
    """The frames of shards that are mapped into memory; for many threads.

    Args:
        files: The files of the shards. None: no file is mapped.
        index: From a shard to its index.
        name: From a shard to its name for messages.
    """

    def __init__(
        self, files: Files | None, index: Callable[[int], ShardIndex], name: Callable[[int], str]
    ) -> None:
        self._files, self._index, self._name = files, index, name

    def mapped(self, shard: int) -> memoryview | None:
        """The map of a shard's file, not verified; None if the file is not on this machine."""
        found = None if self._files is None else self._files.get(shard)
        return None if found is None else found[0]

    def verified(self, shard: int) -> NDArray[np.bool_] | None:
        """Which frames of a shard are verified, as of the last look, bool [F]; None as in `mapped`."""
        found = None if self._files is None else self._files.get(shard)
        return None if found is None else found[1].verified

    def look(self, shard: int, again: bool = True) -> tuple[memoryview, Version]:
        """Look at a shard's file; returns its map and its version.

        Args:
            shard: The number of the shard.
            again: Whether to look even if the last look was a moment ago.

        Raises:
            CorruptionError: The file was cut short.
            StorageError: The file cannot be mapped any more.
        """
        found = None if self._files is None else self._files.look(shard, again)
        if found is None:
            raise StorageError(f"{self._name(shard)}: it cannot be mapped into memory any more")
        return found

    def verify(self, shard: int, frame: int, again: bool = True) -> memoryview:
        """The stored bytes of a frame, verified once for each version of the file.

        Args:
            shard: The number of the shard.
            frame: The number of the frame.
            again: Whether to look at the file even if the last look was a moment ago.

        Raises:
            CorruptionError: The frame is damaged, or the file has changed.
        """
        data, version = self.look(shard, again)
        index = self._index(shard)
        start = int(index.frame_offset[frame])
        stored = data[start : start + int(index.frame_size[frame])]
        if not version.verified[frame]:
            check_frame(stored, index, frame, self._name(shard), version.changed)
            version.verified[frame] = True
        return stored

    def unchanged(self, frames: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of these frames, (shard, number), that were verified, and whose files are still the same."""
        good: dict[int, NDArray[np.bool_] | None] = {}
        for shard in {shard for shard, _ in frames}:
            try:
                found = None if self._files is None else self._files.look(shard)
            except (CorruptionError, StorageError):  # whoever reads the frame is told
                found = None
            good[shard] = None if found is None else found[1].verified
        return [
            (shard, frame)
            for shard, frame in frames
            if (verified := good[shard]) is not None and verified[frame]
        ]

    def check_again(self, shard: int, frame: int) -> None:
        """Verify a frame after its bytes were used, if its file has changed meanwhile."""
        if self.mapped(shard) is not None:
            self.verify(shard, frame)


def check_frame(data: Data, index: ShardIndex, frame: int, shard: str, changed: bool = False) -> None:
    """Check that bytes are the stored bytes of a frame.

    Args:
        data: The bytes.
        index: The index of the shard.
        frame: The number of the frame.
        shard: The shard, for messages.
        changed: Whether the file of the shard has changed since it was opened, for messages.

    Raises:
        CorruptionError: The checksum is another one.
    """
    if frames.checksum(data) != int(index.frame_checksum[frame]):
        how = "changed while the dataset was open" if changed else "damaged"
        raise wrong_checksum(f"{shard}, frame {frame}", how)
