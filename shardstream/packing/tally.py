"""Tallies: how many samples there were and what they held, so that what is stored is what the sources gave.

The order of samples does not matter, so that a shuffle has the same tally. Source of the hash: xxHash,
XXH3_64bits_withSeed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import xxhash

_MASK = (1 << 64) - 1
_hash = xxhash.xxh3_64_intdigest


class Tally(msgspec.Struct):
    """A count of samples, and the sum of their digests modulo 2**64."""

    count: int = 0
    digest: int = 0

    def add(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Count one sample."""
        self.count += 1
        self.digest = (self.digest + sample_digest(key.encode(), fields.items())) & _MASK

    def remove(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Take back what `add` counted."""
        self.count -= 1
        self.digest = (self.digest - sample_digest(key.encode(), fields.items())) & _MASK

    def add_frame(
        self,
        raw: bytes | memoryview,
        keys: Sequence[bytes],
        names: Sequence[str],
        cells: Sequence[tuple[int, int, int, int]],
        at: int,
    ) -> int:
        """Count the samples of a frame: its bytes and its cells alone, so that a mistake in either shows.

        Args:
            raw: The frame before compression.
            keys: The keys of its samples.
            names: The names of the columns of the cells.
            cells: Row, column, first byte in the frame and bytes of each cell of the shard so far.
            at: The first cell of the frame.

        Returns:
            The cell behind its last.
        """
        view, digest = memoryview(raw), self.digest
        for key in keys:
            row = cells[at][0]
            value = _hash(key)
            while at < len(cells) and cells[at][0] == row:
                _, column, start, size = cells[at]
                value = _hash(view[start : start + size], value ^ _name(names[column]))
                at += 1
            digest += value
        self.count += len(keys)
        self.digest = digest & _MASK
        return at


def total(tallies: Iterable[Tally]) -> Tally:
    """The tally of all samples of several tallies."""
    found = Tally()
    for tally in tallies:
        found.count += tally.count
        found.digest = (found.digest + tally.digest) & _MASK
    return found


def sample_digest(key: bytes, fields: Iterable[tuple[str, bytes | memoryview]]) -> int:
    """The digest of one sample, 64 bits: of its key, and of the name and the bytes of each field in order."""
    value = _hash(key)
    for name, data in fields:
        # The digest so far is the seed of the next.
        value = _hash(data, value ^ _name(name))
    return value


@functools.lru_cache(1 << 12)
def _name(name: str) -> int:
    return _hash(name.encode())
