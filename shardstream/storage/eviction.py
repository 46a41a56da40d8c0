"""Eviction: keeps the SSD tier within its limit, for all processes together."""

from __future__ import annotations

import contextlib
import math
import threading
import time

from shardstream.storage.block_files import BlockFiles, cost
from shardstream.storage.blocks import Block, Schedule
from shardstream.storage.claims import Claims
from shardstream.storage.ledger import Ledger

__all__ = ["Eviction"]

_PATIENCE = 10.0  # seconds that a writer waits while another process makes room
_SLACK = 64  # the part of the limit that making room frees at once


class Eviction:
    """Deletes what is needed latest; its `make_room` is for one thread."""

    def __init__(self, files: BlockFiles, ledger: Ledger, claims: Claims, schedule: Schedule) -> None:
        self._files, self._ledger, self._claims, self._schedule = files, ledger, claims, schedule
        # Blocks needed as late are not worth a look at all others, until many bytes were refused.
        self._latest, self._refused = math.inf, 0
        self._deleting = threading.Lock()

    def make_room(self, block: Block, price: int, limit: int) -> bool:
        """Delete what is needed latest, and later than a block, until there is room for its bytes.

        price: of the block, and counted already. False if there is too little: it is not worth keeping.
        """
        if self._ledger.total() <= limit:
            return True
        own = self._schedule.group(block.group)(block.name)
        if own >= self._latest and self._refused < limit // _SLACK:
            self._refused += price
            return False
        deadline, pause = time.monotonic() + _PATIENCE, threading.Event()
        while (turn := self._claims.take("evict")) is None and time.monotonic() < deadline:
            if self._ledger.total() <= limit:
                return True
            pause.wait(0.02)  # locks of other processes can only be polled
        try:
            goal = limit - limit // _SLACK
            self._latest, self._refused = math.inf, 0
            for use, group, name, size in sorted(self._candidates(price, limit), key=lambda found: -found[0]):
                if self._ledger.total() <= goal:
                    break
                if use <= own:
                    self._latest = own
                    break
                with contextlib.suppress(OSError):
                    self.delete(group, name, size)
            return self._ledger.total() <= limit
        finally:
            if turn is not None:
                turn.release()

    def delete(self, group: str, name: str, size: int) -> bool:
        """Delete a block and count it; whether this did it."""
        with self._deleting:
            deleted = self._files.delete(group, name)
            if deleted:
                self._ledger.add(-cost(size))
        return deleted

    def _candidates(self, price: int, limit: int) -> list[tuple[float, str, str, int]]:
        """(next use, group, name, size) of all blocks; sets the ledger right where it has drifted."""
        with self._deleting:  # what is gone but still counted would be taken off twice
            blocks = list(self._files.all())
            prices = [cost(size) for _, _, size in blocks]
            drift = sum(prices) + price - self._ledger.total()
            # Blocks that are being written are counted, but not seen here.
            if abs(drift) > limit // _SLACK + max(prices, default=0) * (len(self._ledger.processes()) + 1):
                self._ledger.add(drift)
        found, current, next_use = [], "", self._schedule.group("")
        for group, name, size in blocks:
            if group != current:
                current, next_use = group, self._schedule.group(group)
            found.append((next_use(name), group, name, size))
        return found
