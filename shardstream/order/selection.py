"""Selection: some samples of a dataset, as counts over shards and one bit a sample at most."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["Selection"]

Ints = NDArray[np.int64]


class Selection:
    """Which samples of each shard take part.

    counts: int64 [P], the samples kept of each shard.  Their numbers are held for those shards of which
    some are kept and some not: a bit for each sample, or the numbers where that is less.
    """

    def __init__(self, sizes: Ints, kept: Iterable[tuple[int, Ints]]) -> None:
        """kept: the shards in rising order, each with the numbers within it, rising; others keep none."""
        self.counts = np.zeros(len(sizes), np.int64)
        self._sizes = sizes
        self._packed: dict[int, NDArray[np.generic]] = {}
        digest = xxhash.xxh3_128()
        for shard, numbers in kept:
            size = int(sizes[shard])
            self.counts[shard] = len(numbers)
            if 0 < len(numbers) < size:
                digest.update(np.ascontiguousarray(numbers, "<i8").tobytes())
                self._packed[shard] = _pack(numbers, size)
        digest.update(self.counts.astype("<i8").tobytes())
        self.digest: str = digest.hexdigest()
        self.total = int(self.counts.sum())
        self._ends = np.cumsum(self.counts)

    def kept(self, shard: int) -> Ints | None:
        """The numbers that are kept of a shard, rising; None for all of them."""
        packed = self._packed.get(shard)
        if packed is None:
            return None if self.counts[shard] else np.empty(0, np.int64)
        if packed.dtype != np.uint8:
            return packed.astype(np.int64)
        bits = np.unpackbits(packed.view(np.uint8), count=int(self._sizes[shard]))
        return np.flatnonzero(bits)

    def frame_first(self, shard: int, first: NDArray[np.generic]) -> NDArray[np.generic]:
        """`first`, the first sample of each frame and the end, of the kept samples; without empty frames."""
        kept = self.kept(shard)
        if kept is None:
            return first
        return np.unique(np.searchsorted(kept, np.asarray(first).astype(np.int64)))

    def locate(self, numbers: Ints) -> tuple[Ints, Ints]:
        """The shard, and the number within it, of kept samples by their rank among all that are kept."""
        shards = np.searchsorted(self._ends, numbers, side="right")
        return shards, numbers - (self._ends - self.counts)[shards]

    def shards(self) -> list[int]:
        """The shards of which samples are kept."""
        found: list[int] = np.flatnonzero(self.counts).tolist()
        return found

    @classmethod
    def everything(cls, sizes: Ints) -> Selection:
        """All samples of shards of these sizes."""
        return cls(sizes, ((shard, np.arange(size)) for shard, size in enumerate(sizes.tolist()) if size))


def _pack(numbers: Ints, size: int) -> NDArray[np.generic]:
    if 32 * len(numbers) < size <= 1 << 31:
        return numbers.astype(np.int32)
    mask = np.zeros(size, np.bool_)
    mask[numbers] = True
    return np.packbits(mask)
