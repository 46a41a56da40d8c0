"""Tallies: how many samples there were and what they held, so that what is stored is what the sources gave.

The order of samples does not matter, so that a shuffle has the same tally. Source of the hash: xxHash,
XXH3_64bits_withSeed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import xxhash

from shardstream.format.cells import Cells

__all__ = ["FACTOR", "Tally", "first_seed", "total"]

FACTOR = 0x9E3779B97F4A7C15  # odd, so that no size is lost modulo 2**64
_MASK = (1 << 64) - 1
_LARGE = 8 << 10  # bytes of a sample of which a copy costs more than more calls do
_hash = xxhash.xxh3_64_intdigest


class Tally(msgspec.Struct):
    """A count of samples, and the sum of their digests modulo 2**64.

    The digest of a sample is that of its key and its fields, joined. Its seed has the names of the fields and
    all sizes.
    """

    count: int = 0
    digest: int = 0

    def add(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Count one sample."""
        self.count += 1
        self.digest = (self.digest + _digest(key.encode(), tuple(fields), tuple(fields.values()))) & _MASK

    def remove(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Take back what `add` counted."""
        self.count -= 1
        self.digest = (self.digest - _digest(key.encode(), tuple(fields), tuple(fields.values()))) & _MASK

    def add_joined(self, joined: Iterable[bytes | memoryview], seeds: Iterable[int]) -> None:
        """Count samples, of which each is its key and its fields, joined, and its seed."""
        digests = list(map(_hash, joined, seeds))
        self.count += len(digests)
        self.digest = (self.digest + sum(digests)) & _MASK

    def add_frame(
        self, raw: bytes | memoryview, keys: Sequence[bytes], names: Sequence[str], cells: Cells, first: int
    ) -> None:
        """Count the samples of a frame: its bytes and its cells alone, so that a mistake in either shows.

        Args:
            raw: The frame before compression.
            keys: The keys of its samples.
            names: The names of the columns of the cells.
            cells: The cells of the shard so far.
            first: The number of the first sample.
        """
        view = memoryview(raw)
        for run in cells.runs(first, first + len(keys)):
            shape = tuple(names[column] for column in run.columns)
            end = run.first + (run.end - run.begin) * len(shape)
            sizes = cells.sizes[run.first : end]
            data = _pieces(view, cells.offsets[run.first : end], sizes)
            self.add_cells(shape, keys[run.begin - first : run.end - first], data, sizes)

    def add_cells(
        self,
        names: tuple[str, ...],
        keys: Sequence[bytes],
        data: Iterator[bytes | memoryview],
        sizes: Sequence[int],
    ) -> None:
        """Count samples that have the same fields.

        Args:
            names: The names of the fields.
            keys: The key of each sample.
            data: The bytes of each field, sample by sample.
            sizes: How many these are.
        """
        width = len(names)
        rows = zip(*[data] * width, strict=True)
        if sum(sizes) > _LARGE * len(keys):
            digests = sum(_digest(key, names, values) for key, values in zip(keys, rows, strict=True))
            self.count += len(keys)
            self.digest = (self.digest + digests) & _MASK
            return
        seeds = [first_seed(names) + len(key) for key in keys]
        for column in range(width):
            some = sizes[column::width]
            seeds = [seed * FACTOR + size & _MASK for seed, size in zip(seeds, some, strict=True)]
        self.add_joined(map(b"".join, zip(keys, *[data] * width, strict=True)), seeds)


def total(tallies: Iterable[Tally]) -> Tally:
    """The tally of all samples of several tallies."""
    found = Tally()
    for tally in tallies:
        found.count += tally.count
        found.digest = (found.digest + tally.digest) & _MASK
    return found


@functools.lru_cache(1 << 12)
def first_seed(names: tuple[str, ...]) -> int:
    """The seed of a sample with these fields, to which the sizes of its key and of its fields are added.

    For each field in turn, the seed is multiplied by FACTOR, and the size of the field is added to it.
    """
    return _hash("/".join(names).encode())


def _digest(key: bytes, names: tuple[str, ...], values: Sequence[bytes | memoryview]) -> int:
    seed, size = first_seed(names) + len(key), 0
    for data in values:
        seed = seed * FACTOR + len(data)
        size += len(data)
    if size <= _LARGE:
        return _hash(b"".join((key, *values)), seed & _MASK)
    state = xxhash.xxh3_64(key, seed & _MASK)
    for data in values:
        state.update(data)
    return state.intdigest()


def _pieces(view: memoryview, offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[memoryview]:
    ends = map(int.__add__, offsets, sizes)
    return map(view.__getitem__, map(slice, offsets, ends))
