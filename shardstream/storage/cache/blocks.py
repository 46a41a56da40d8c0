"""Blocks, and when they are needed next."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardstream.memory import when_dropped
from shardstream.storage.transport.backends import Data

__all__ = ["Block", "EpochsUntilUse", "NextUses", "seal"]

# A group -> for each of its frames the epochs until it is needed next, float64 [F]; None for an unknown
# group.
EpochsUntilUse = Callable[[str], "NDArray[np.float64] | None"]

_random = random.Random()  # the program's own generator stays as it is


class Block(NamedTuple):
    """The unit that is fetched, cached and checked: a frame, an index, or a file that is one stream.

    group: 32 hex digits that name the content of the shard that the block is part of. If a dataset is
    replaced, its groups have other names, so that nobody gets bytes of the old one.  name: "12" for frame 12,
    "12.raw" for the same frame decompressed, "index" or "whole"; "columns" for an
    index with its columns of values.  size: its bytes.
    """

    group: str
    name: str
    size: int


def seal(block: Block, data: Data) -> int:
    """The checksum of a block in the cache: of its bytes, its group and its name."""
    seed = xxhash.xxh3_64_intdigest(f"{block.group}/{block.name}".encode())
    return xxhash.xxh3_64_intdigest(data, seed)


class NextUses:
    """When blocks are needed next, in epochs from now, as far as the readers of this process know."""

    def __init__(self) -> None:
        self._readers: dict[int, EpochsUntilUse] = {}
        self._lock = threading.Lock()

    def set(self, reader: object, known: EpochsUntilUse) -> None:
        """Ask this function from now on, until the reader is dropped. The function must not refer to it."""
        key = id(reader)
        with self._lock:
            if key not in self._readers:
                when_dropped(reader, self._readers.pop, key, None)
            self._readers[key] = known

    def of_blocks(self, group: str, names: Sequence[str]) -> list[float]:
        """What `of_group` says of each of these blocks, in less time."""
        known, heads = self._known(group), [name.partition(".")[0] for name in names]
        if len(known) == 1 and all(head.isdigit() for head in heads):
            numbers = np.array([int(head) for head in heads], np.int64)
            if int(numbers.max(initial=-1)) < len(known[0]):
                found: list[float] = known[0][numbers].tolist()
                return found
        next_use = self.of_group(group)
        return [next_use(name) for name in names]

    def _known(self, group: str) -> list[NDArray[np.float64]]:
        with self._lock:
            readers = list(self._readers.values())
        return [epochs for epochs in (reader(group) for reader in readers) if epochs is not None]

    def of_group(self, group: str) -> Callable[[str], float]:
        """A function: the name of a block of the group -> epochs until the block is needed next.

        If no reader knows the group, its blocks count as needed in the next epoch, in random order: dropping
            the
        oldest first would drop the blocks that a scan needs soonest.
        """
        known = self._known(group)

        def next_use(name: str) -> float:
            number = name.partition(".")[0]
            if not known:
                return 1 + _random.random()
            if name == "index":
                return -1.0
            # Of a file that is one stream, any frame needs all.
            at = slice(int(number), int(number) + 1) if number.isdigit() else slice(None)
            return min((float(epochs[at].min()) for epochs in known if len(epochs[at])), default=math.inf)

        return next_use
