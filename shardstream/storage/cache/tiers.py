"""The walk through the tiers: memory, then the SSD; each may be missing."""

from __future__ import annotations

import time

from shardstream.counters.layout import stage
from shardstream.memory import MemoryBudget
from shardstream.storage.cache.blocks import Block, EpochsUntilUse
from shardstream.storage.cache.counters import ReadCounters
from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.cache.locks import FetchLock
from shardstream.storage.cache.memory import MemoryTier
from shardstream.storage.cache.write_behind import queue_room
from shardstream.storage.cancellation import current
from shardstream.storage.transport.backends import Data

__all__ = ["Tiers"]

_DISK = stage("disk")
_BUDGET = 512 << 20  # bytes, as in the default Cache


class Tiers:
    """The tiers of one reader, and the budget of all that the reader has in memory.

    Args:
        memory: The RAM tier.
        disk: The SSD tier.
        mapped: Whether blocks on the SSD are mapped into memory, and not copied.
        budget: By default the RAM tier's.
        read_only: Whether the SSD tier stays as it is, damaged blocks included.

    Attributes:
        counters: The bytes that each tier and the store gave.
    """

    def __init__(
        self,
        memory: MemoryTier | None = None,
        disk: DiskTier | None = None,
        mapped: bool = False,
        budget: MemoryBudget | None = None,
        read_only: bool = False,
    ) -> None:
        self.memory, self.disk, self._mapped, self._read_only = memory, disk, mapped, read_only
        if budget is None:
            budget = MemoryBudget(_BUDGET) if memory is None else memory.budget
        self.budget = budget
        self.counters = ReadCounters()
        self._to_write = budget.holder("write-behind")

    def find(self, block: Block) -> Data | None:
        """A block from the first tier that has it. A block from the SSD is put into memory, too."""
        found: Data | None = self.memory.get(block) if self.memory is not None else None
        if found is not None:
            self.counters.from_memory(len(found))
            return found
        if self.disk is None or (self._read_only and self.disk.state(block) != "sound"):
            return None
        started = time.monotonic()
        found = self.disk.get(block, self._mapped, self.counters.damaged)
        if found is not None:
            current().recorder.span(_DISK, started, time.monotonic())
            self.counters.from_disk(len(found))
            if not self._mapped:  # a mapped block is in memory already
                self.remember(block, found)
        return found

    def has(self, block: Block) -> bool:
        """Whether a tier seems to have the block."""
        return (self.memory is not None and self.memory.has(block)) or (
            self.disk is not None and self.disk.has(block)
        )

    def remember(self, block: Block, data: Data) -> None:
        """Put a block into the RAM tier."""
        # Readers have the indexes in memory themselves, and read the columns once.
        if self.memory is not None and block.name not in ("index", "columns"):
            self.memory.put(block, data)

    def write(self, block: Block, data: Data, lock: FetchLock | None, wait: float = 0.0) -> bool:
        """Let a block be written to the SSD tier, as `DiskTier.put`; whether it is going to be written."""
        if self._read_only or self.disk is None:
            if lock is not None:
                lock.release()
            return False
        return self.disk.put(block, data, lock, wait, self._to_write)

    @property
    def room(self) -> int:
        """The bytes of the budget that are free, or are the RAM tier's, which gives way."""
        return self.budget.free + (0 if self.memory is None else self.memory.used)

    @property
    def room_to_write(self) -> int:
        """The bytes of blocks that may still wait to be written, however small the budget is."""
        return queue_room(self._to_write)

    @property
    def alone(self) -> bool:
        """Whether no other process uses the SSD tier."""
        return self.disk is None or self.disk.alone

    def set_next_uses(self, reader: object, known: EpochsUntilUse) -> None:
        """Tell all tiers when the blocks of a reader are needed next, as `NextUses.set`."""
        for tier in (self.memory, self.disk):
            if tier is not None:
                tier.next_uses.set(reader, known)
