"""A numpy Generator for each sample: the same for any number of ranks, threads or workers, and any restart.

The generator is a Philox4x64-10 with the key (seed, epoch). Its counter begins at
[0, position, source, purpose], so that no two samples share a random number. Each sample gets a generator
object of its own, since a transform may keep its generator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from numpy.random.bit_generator import ISpawnableSeedSequence
from numpy.typing import NDArray

from shardstream.order.shuffle import ITEM, TRANSFORM

__all__ = ["Generators"]


class Generators:
    """The generators of n samples. A generator is made when it is asked for.

    Args:
        seed: Of the shuffle.
        epoch: Of the samples.
        source: The number of the dataset in a mixture, else 0.
        positions: int64 [n], the positions of the samples in the order of the epoch.
        items: Whether `positions` are numbers of samples in the dataset instead. They are if samples are
            read by number.
    """

    __slots__ = ("_key", "_positions", "_purpose", "_source")

    def __init__(
        self, seed: int, epoch: int, source: int, positions: NDArray[np.int64], items: bool = False
    ) -> None:
        self._key, self._source, self._positions = (seed, epoch), source, positions
        self._purpose = ITEM if items else TRANSFORM

    def __getitem__(self, rows: slice) -> Generators:
        return Generators(*self._key, self._source, self._positions[rows], self._purpose == ITEM)

    def __len__(self) -> int:
        return len(self._positions)

    def generator(self, row: int) -> Generator:
        """The generator of one sample, from which nothing was drawn yet; `row` is 0 to n - 1."""
        position = int(self._positions[row])
        counter = np.array([0, position, self._source, self._purpose], np.uint64)
        # Philox(key=...) would also ask the operating system for a seed, which is slow and not needed.
        key: Any = _Key(*self._key, position, self._source, self._purpose)
        return Generator(Philox(key, counter=counter))


class _Key(ISpawnableSeedSequence):
    """Gives a Philox its key, (seed, epoch). Generators that are spawned depend on all of the words."""

    def __init__(self, seed: int, epoch: int, *others: int) -> None:
        self._words = (seed, epoch, *others)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        if n_words == 2 and np.dtype(dtype) == np.uint64:
            return np.array(self._words[:2], np.uint64)
        return self._sequence().generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> list[Any]:
        return self._children().spawn(n_children)

    def _children(self) -> SeedSequence:
        # One object for all calls: each call of spawn gives other children, as with numpy.
        if not hasattr(self, "_spawned"):
            self._spawned = self._sequence()
        return self._spawned

    def _sequence(self) -> SeedSequence:
        return SeedSequence([half for word in self._words for half in (word & 0xFFFFFFFF, word >> 32)])
