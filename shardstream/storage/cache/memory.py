"""The RAM tier: blocks in memory, across epochs."""

from __future__ import annotations

import threading
from operator import itemgetter

from shardstream.memory import MemoryBudget
from shardstream.storage.cache.blocks import Block, NextUses
from shardstream.storage.cache.range_parts import Range, owned, range_of
from shardstream.storage.transport.backends import Data

__all__ = ["MemoryTier"]

_SLACK = 16  # one part in so many of the limit is freed at once


class MemoryTier:
    """Blocks in memory, as many as the other holders of a budget leave room for; may be used by many threads.

    The block that is needed latest is dropped first. A read costs nothing. A block may be a view of the range
    in which it came: only when the others of this range are gone, and room is made, it is copied. As long as
    others are elsewhere, it stays: to drop it would free nothing.

    Args:
        budget: What the blocks count in, as "RAM tier".
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.next_uses = NextUses()
        self._blocks: dict[Block, Data] = {}
        self._parts: dict[Range, set[Block]] = {}  # the blocks that are views, by their range
        self._holder = budget.holder("RAM tier")
        self._lock = threading.Lock()
        self._making_room = threading.Lock()
        budget.shrink_first(self.shrink)

    @property
    def limit(self) -> int:
        """The bytes of all blocks, if nothing else takes any of the budget."""
        return self.budget.limit

    @property
    def used(self) -> int:
        """The bytes of the blocks that are there."""
        return self._holder.total

    @property
    def room(self) -> int:
        """The bytes that other holders of the budget may take: all that they do not have yet."""
        return self.budget.free + self.used

    def get(self, block: Block) -> Data | None:
        """The bytes of a block, or None."""
        return self._blocks.get(block)

    def has(self, block: Block) -> bool:
        """Whether the block is there."""
        return block in self._blocks

    def put(self, block: Block, data: Data) -> None:
        """Add a block; the blocks that are needed latest are dropped, which may be this one."""
        size = len(data)
        if size > self.room:
            return
        with self._lock:
            before = self._blocks.get(block)
            self._set(block, data)
            self._holder.count(size - (0 if before is None else len(before)))
            del before
        self.budget.make_room()

    def _set(self, block: Block, data: Data | None) -> None:
        """Have these bytes of a block, or none; for a thread that has the lock."""
        before = self._blocks.get(block)
        found = None if before is None else range_of(before)
        if found is not None:
            self._parts[found].discard(block)
            if not self._parts[found]:
                del self._parts[found]
        if data is None:
            del self._blocks[block]
            return
        self._blocks[block] = data  # in one step: readers take no lock
        found = range_of(data)
        if found is not None:
            self._parts.setdefault(found, set()).add(block)

    def shrink(self, missing: int) -> None:
        """Drop so many bytes of blocks, and some more, so that the next call does not follow at once."""
        # One thread does it for all. The others do not wait for it, for it asks the readers when they need
        # the blocks, and one of the others may be a reader. It looks again when it is done.
        while missing > 0 and self.used and self._making_room.acquire(blocking=False):
            try:
                self._copy_parts()
                missing = -self.budget.free
                if missing > 0:
                    if not self._drop(missing + self.limit // _SLACK):
                        return
                    self._copy_parts()
            finally:
                self._making_room.release()
            missing = -self.budget.free

    def _drop(self, size: int) -> bool:
        """Drop so many bytes of blocks that free memory, if there are as many; whether there are any."""
        left = size
        for block in self._latest_first():
            if left <= 0:
                break
            with self._lock:  # only one thread at a time takes blocks away
                found = range_of(self._blocks[block])
                if found is None or len(self._parts[found]) == found.left:
                    data_size = len(self._blocks[block])
                    self._set(block, None)
                    self._holder.count(-data_size)
                    left -= data_size
        return left < size

    def _copy_parts(self) -> None:
        """Copy the blocks that are all that is left of their range, so that its memory goes."""
        with self._lock:
            found = [list(blocks) for each, blocks in self._parts.items()
                     if each.broken and len(blocks) == each.left]  # fmt: skip
        for blocks in found:  # one range after the other: there is never much more memory
            for block in blocks:
                data = owned(self._blocks[block])
                with self._lock:
                    self._set(block, data)

    def _latest_first(self) -> list[Block]:
        """All blocks, the one that is needed latest first."""
        groups: dict[str, list[Block]] = {}
        with self._lock:
            for block in self._blocks:
                groups.setdefault(block.group, []).append(block)
        found: list[tuple[float, Block]] = []
        for group, blocks in groups.items():
            names = [block.name for block in blocks]
            found += zip(self.next_uses.of_blocks(group, names), blocks, strict=True)
        found.sort(key=itemgetter(0), reverse=True)
        return [block for _, block in found]
