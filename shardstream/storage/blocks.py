"""Blocks, and when they are needed next."""

from __future__ import annotations

import math
import random
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardstream.storage.stores import Data

__all__ = ["Block", "Schedule", "Uses", "seal"]

Uses = Callable[[str], "NDArray[np.float64] | None"]


class Block(NamedTuple):
    """What is fetched, kept and checked as one: a frame, an index, or a file that is one stream.

    group: 32 hex digits that name the content it is part of, so that a dataset that was replaced
    never gets the other's bytes.  name: "12" or "12.raw" for frame 12, "index" or "whole".
    size: its bytes.
    """

    group: str
    name: str
    size: int


def seal(block: Block, data: Data) -> int:
    """The checksum of a block that is kept: of its bytes, and of where they belong."""
    seed = xxhash.xxh3_64_intdigest(f"{block.group}/{block.name}".encode())
    return xxhash.xxh3_64_intdigest(data, seed)


class Schedule:
    """When blocks are needed next, in epochs from now, as far as the readers of this process know.

    A reader gives a function of a group: for each of its frames the epochs until it is needed next,
    or None for a group that it does not know.
    """

    def __init__(self) -> None:
        self._readers: dict[int, Uses] = {}
        self._lock = threading.Lock()

    def set(self, reader: object, uses: Uses) -> None:
        """Take over what a reader knows, until it is gone."""
        key = id(reader)
        with self._lock:
            if key not in self._readers:
                weakref.finalize(reader, self._readers.pop, key, None).atexit = False
            self._readers[key] = uses

    def next_uses(self, group: str, names: Sequence[str]) -> list[float]:
        """What `group` says of each of these blocks, sooner."""
        known, heads = self._known(group), [name.partition(".")[0] for name in names]
        if len(known) == 1 and all(head.isdigit() for head in heads):
            numbers = np.array([int(head) for head in heads], np.int64)
            if int(numbers.max(initial=-1)) < len(known[0]):
                found: list[float] = known[0][numbers].tolist()
                return found
        next_use = self.group(group)
        return [next_use(name) for name in names]

    def _known(self, group: str) -> list[NDArray[np.float64]]:
        with self._lock:
            readers = list(self._readers.values())
        return [uses for uses in (reader(group) for reader in readers) if uses is not None]

    def group(self, group: str) -> Callable[[str], float]:
        """name -> epochs until that block of the group is needed next.

        Blocks that nobody here knows count as used up in this epoch, in random order: dropping the
        oldest first would drop what a scan needs soonest.
        """
        known = self._known(group)

        def next_use(name: str) -> float:
            number = name.partition(".")[0]
            if not known:
                return 1 + random.random()
            if name == "index":
                return -1.0
            # Of a file that is one stream, any frame needs all.
            at = slice(int(number), int(number) + 1) if number.isdigit() else slice(None)
            return min((float(uses[at].min()) for uses in known if len(uses[at])), default=math.inf)

        return next_use
