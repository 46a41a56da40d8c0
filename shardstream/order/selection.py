"""Selection: some samples of a dataset, in at most one bit for each sample."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["Selection"]

Ints = NDArray[np.int64]


class Selection:
    """Which samples of each of P shards take part.

    If some samples of a shard take part and others do not, the shard needs memory: one bit for each sample,
    or 4 bytes for each chosen sample if that is less.

    Args:
        sizes: int64 [P], how many samples each shard has.
        chosen: Shards in rising order, each with the numbers of its chosen samples, int64, rising. No sample
            of any other shard takes part.

    Attributes:
        counts: int64 [P], how many samples of each shard are chosen.
        total: How many samples are chosen in all.
        digest: A checksum of the selection, 32 hexadecimal digits.
    """

    def __init__(self, sizes: Ints, chosen: Iterable[tuple[int, Ints]]) -> None:
        self.counts = np.zeros(len(sizes), np.int64)
        self._sizes = sizes
        self._packed: dict[int, NDArray[np.generic]] = {}
        digest = xxhash.xxh3_128()
        for shard, numbers in chosen:
            size = int(sizes[shard])
            self.counts[shard] = len(numbers)
            if 0 < len(numbers) < size:
                digest.update(np.ascontiguousarray(numbers, "<i8").tobytes())
                self._packed[shard] = _pack(numbers, size)
        digest.update(self.counts.astype("<i8").tobytes())
        self.digest: str = digest.hexdigest()
        self.total = int(self.counts.sum())
        self._ends = np.cumsum(self.counts)

    def chosen(self, shard: int) -> Ints | None:
        """The numbers of the chosen samples of a shard, int64, rising; None if all are chosen."""
        packed = self._packed.get(shard)
        if packed is None:
            return None if self.counts[shard] else np.empty(0, np.int64)
        if packed.dtype != np.uint8:
            return packed.astype(np.int64)
        bits = np.unpackbits(packed.view(np.uint8), count=int(self._sizes[shard]))
        return np.flatnonzero(bits)

    def frame_first(self, shard: int, first: NDArray[np.generic]) -> NDArray[np.generic]:
        """The bounds of the frames of a shard, counted in chosen samples.

        Args:
            shard: The number of the shard.
            first: [F + 1], the first sample of each frame, then the end, counted in all samples.

        Returns:
            [K + 1] for the K frames that have a chosen sample.
        """
        chosen = self.chosen(shard)
        if chosen is None:
            return first
        return np.unique(np.searchsorted(chosen, np.asarray(first).astype(np.int64)))

    def locate(self, numbers: Ints) -> tuple[Ints, Ints]:
        """The shards of some chosen samples, and their numbers among the chosen samples of these shards.

        Args:
            numbers: Numbers among all chosen samples, 0 to total - 1.
        """
        shards = np.searchsorted(self._ends, numbers, side="right")
        return shards, numbers - (self._ends - self.counts)[shards]

    def shards(self) -> list[int]:
        """The numbers of the shards of which at least one sample is chosen, rising."""
        found: list[int] = np.flatnonzero(self.counts).tolist()
        return found

    @classmethod
    def everything(cls, sizes: Ints) -> Selection:
        """The selection of all samples, in shards of these sizes."""
        return cls(sizes, ((shard, np.arange(size)) for shard, size in enumerate(sizes.tolist()) if size))


def _pack(numbers: Ints, size: int) -> NDArray[np.generic]:
    if 32 * len(numbers) < size <= 1 << 31:
        return numbers.astype(np.int32)
    mask = np.zeros(size, np.bool_)
    mask[numbers] = True
    return np.packbits(mask)
