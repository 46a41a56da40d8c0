"""Eviction: makes room in the SSD tier, within one limit for all processes together."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable

from shardstream.storage.cache.blocks import Block, NextUses
from shardstream.storage.cache.entries import Entries, cost
from shardstream.storage.cache.locks import FetchLocks
from shardstream.storage.cache.usage import Usage

__all__ = ["Eviction"]

_PATIENCE = 10.0  # seconds that a writer waits while another process makes room
_SLACK = 64  # one part in so many of the limit is freed at once


class Eviction:
    """Deletes the blocks that are needed latest. `make_room` is for one thread.

    Args:
        entries: The files.
        usage: The bytes of all files.
        locks: One process at a time deletes blocks.
        next_uses: When the blocks are needed.
        others: The bytes of the files that are counted and are no blocks.
    """

    def __init__(
        self,
        entries: Entries,
        usage: Usage,
        locks: FetchLocks,
        next_uses: NextUses,
        others: Callable[[], int] = lambda: 0,
    ) -> None:
        self._entries, self._usage, self._locks, self._next_uses = entries, usage, locks, next_uses
        self._others = others
        # A block that is needed as late as this is refused without a look at all others, until many bytes of
        # such blocks were refused.
        self._latest, self._refused = math.inf, 0
        self._deleting = threading.Lock()

    def make_room(self, block: Block | None, price: int, limit: int) -> bool:
        """Delete blocks that are needed later than this one, the latest first, until there is room for it.

        Args:
            block: The block; None for a file that is needed sooner than any block.
            price: Its bytes of disk, which are counted already.
            limit: Bytes of disk for all files.

        Returns:
            Whether there is room now. If not, the other blocks are needed sooner.
        """
        if self._usage.total() <= limit:
            return True
        own = -math.inf if block is None else self._next_uses.of_group(block.group)(block.name)
        if own >= self._latest and self._refused < limit // _SLACK:
            self._refused += price
            return False
        deadline, pause = time.monotonic() + _PATIENCE, threading.Event()
        while (turn := self._locks.take("evict")) is None and time.monotonic() < deadline:
            if self._usage.total() <= limit:
                return True
            pause.wait(0.02)  # locks of other processes can only be polled
        try:
            goal = limit - limit // _SLACK
            self._latest, self._refused = math.inf, 0
            for use, group, name, size in sorted(self._candidates(price, limit), key=lambda found: -found[0]):
                if self._usage.total() <= goal:
                    break
                if use <= own:
                    self._latest = own
                    break
                with contextlib.suppress(OSError):
                    self.delete(group, name, size)
            return self._usage.total() <= limit
        finally:
            if turn is not None:
                turn.release()

    def delete(self, group: str, name: str, size: int) -> bool:
        """Delete a block and count it; False if it was gone."""
        with self._deleting:
            deleted = self._entries.delete(group, name)
            if deleted:
                self._usage.add(-cost(size))
        return deleted

    def _candidates(self, price: int, limit: int) -> list[tuple[float, str, str, int]]:
        """(next use, group, name, size) of all blocks; corrects the usage if it is wrong by much."""
        with self._deleting:  # a block that is deleted and still counted would be taken off twice
            blocks = list(self._entries.all())
            prices = [cost(size) for _, _, size in blocks]
            drift = sum(prices) + self._others() + price - self._usage.total()
            # Blocks that are being written are counted, and are not in the list.
            if abs(drift) > limit // _SLACK + max(prices, default=0) * (len(self._usage.processes()) + 1):
                self._usage.add(drift)
        found, current, next_use = [], "", self._next_uses.of_group("")
        for group, name, size in blocks:
            if group != current:
                current, next_use = group, self._next_uses.of_group(group)
            found.append((next_use(name), group, name, size))
        return found
