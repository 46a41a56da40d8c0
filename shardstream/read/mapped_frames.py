"""The frames that units of work read in mapped files, while the files are watched for changes."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardstream.order.lanes import distinct, distinct_below
from shardstream.read.engine.frames import FrameId
from shardstream.read.reader import DatasetReader

__all__ = ["InPlace", "InPlaceReads"]

Ints = NDArray[np.int64]
_LATE = 1.0  # seconds from a read to the look at its file that proves the read right
_LITTLE = 100  # between two looks at the files lies at least this many times the duration of a look


class InPlaceReads:
    """The frames that units have read in place since the last look at the files; for many threads.

    Args:
        reader: Of the dataset.
    """

    def __init__(self, reader: DatasetReader) -> None:
        self.reader = reader
        self._waiting: deque[dict[int, Ints]] = deque()
        self._due = 0.0

    def add(self, frames: dict[int, Ints]) -> None:
        """Note frames that were read, by shard. About once a second, look at the files of all of them."""
        if frames:
            self._waiting.append(frames)
            if time.monotonic() > self._due:
                self.check_again()

    def check_again(self) -> None:
        """Look at the files of all frames that were read since the last look.

        Raises:
            CorruptionError: A file has changed, and no longer holds what was packed.
        """
        self._due = time.monotonic() + _LATE
        parts: dict[int, list[Ints]] = {}
        with contextlib.suppress(IndexError):
            while True:
                for shard, frames in self._waiting.popleft().items():
                    parts.setdefault(shard, []).append(frames)
        for shard, several in parts.items():
            _, version = self.reader.local.look(shard)
            frames = np.concatenate(several)
            for frame in distinct(frames[~version.verified[frames]]).tolist():
                self.reader.local.verify(shard, frame)


class InPlace:
    """The frames that one unit of work reads in mapped files of shards; for one thread at a time.

    A frame is verified before it is read, unless it was verified before and its file has not changed. After
    the read, `InPlaceReads` looks at the file once more. So the file was right before and after the read.

    Args:
        reads: Where the frames are noted when they were read.
        shards: Where rows can be read from: for each place the number of the shard, or -1 if the place is no
            mapped file.
        place: int64 [n], the place of each row, as an index of `shards`.
        frames: int64 [n], the frame of each row.

    Attributes:
        unverified: The frames that were not verified when the unit was planned.
    """

    def __init__(self, reads: InPlaceReads, shards: Sequence[int], place: Ints, frames: Ints) -> None:
        self._reads, self._reader = reads, reads.reader
        self._frames: dict[int, Ints] = {}
        # Of each shard the marks of verified frames, if all frames of the unit were found in them.
        self._good: dict[int, NDArray[np.bool_]] = {}
        self._due = 0.0
        if any(shard >= 0 for shard in shards):
            # Each frame once: all frames of all places are numbered one after another.
            infos = self._reader.manifest.shards
            sizes = [infos[shard].frames if shard >= 0 else 1 for shard in shards]
            begins = np.concatenate(([0], np.cumsum(sizes)))
            where = begins[place] + np.where(np.array(shards)[place] >= 0, frames, 0)
            found = distinct_below(where, int(begins[-1]))
            bounds = np.searchsorted(found, begins).tolist()
            for number, shard in enumerate(shards):
                if shard >= 0:
                    self._frames[shard] = found[bounds[number] : bounds[number + 1]] - begins[number]
        self.unverified = [frame for shard in self._frames for frame in self._unverified(shard)]

    def _unverified(self, shard: int) -> list[FrameId]:
        found, frames = self._reader.local.verified(shard), self._frames[shard]
        if found is None:
            return []  # the error is raised when the frame is read
        seen = found[frames]
        if seen.all():
            self._good[shard] = found
            return []
        return [(shard, frame) for frame in frames[~seen].tolist()]

    def begin(self) -> dict[int, memoryview]:
        """Verify the frames, and return the mapped files by shard.

        Raises:
            CorruptionError: A frame is not what was packed.
        """
        return self._verify(again=False)

    def watch(self) -> None:
        """Look at the files again while they are read, unless the last look was a moment ago."""
        if time.monotonic() > self._due:
            self._verify()

    def end(self) -> None:
        """Note that the frames were read, so that the next look at the files includes them."""
        self._reads.add(self._frames)

    def _verify(self, again: bool = True) -> dict[int, memoryview]:
        begin, files, known = time.monotonic(), {}, True
        for shard in self._frames:
            files[shard], version = self._reader.local.look(shard, again)
            if version.verified is not self._good.get(shard):
                for _, frame in self._unverified(shard):
                    self._reader.local.verify(shard, frame)
                self._good[shard], known = version.verified, False
        end = time.monotonic()
        # If frames were verified, the time says nothing about how long a look takes.
        self._due = end + _LITTLE * (end - begin) if known else end
        return files
