"""The RAM tier: blocks in memory, across epochs."""

from __future__ import annotations

import threading
from operator import itemgetter

from shardstream.storage.blocks import Block, Schedule
from shardstream.storage.stores import Data

__all__ = ["Memory"]

_SLACK = 16  # the part of the limit that making room frees at once


class Memory:
    """Blocks in memory, at most `limit` bytes of them; may be used by many threads.

    What is needed latest is dropped first. Costs nothing to read.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.schedule = Schedule()
        self.used = 0
        self._held: dict[Block, Data] = {}
        self._lock = threading.Lock()

    def get(self, block: Block) -> Data | None:
        """The bytes of a block, or None."""
        with self._lock:
            return self._held.get(block)

    def has(self, block: Block) -> bool:
        """Whether the block is there."""
        return block in self._held

    def put(self, block: Block, data: Data) -> None:
        """Keep a block, if it may stay for longer than what is there."""
        size = len(data)
        if size > self.limit:
            return
        with self._lock:
            before = self._held.pop(block, None)
            self.used += size - (0 if before is None else len(before))
            self._held[block] = data
            if self.used > self.limit:
                self._make_room()

    def _make_room(self) -> None:
        groups: dict[str, list[Block]] = {}
        for block in self._held:
            groups.setdefault(block.group, []).append(block)
        found: list[tuple[float, Block]] = []
        for group, blocks in groups.items():
            found += zip(
                self.schedule.next_uses(group, [block.name for block in blocks]), blocks, strict=True
            )
        found.sort(key=itemgetter(0), reverse=True)
        goal = self.limit - self.limit // _SLACK
        for _, block in found:
            if self.used <= goal:
                break
            self.used -= len(self._held.pop(block))
