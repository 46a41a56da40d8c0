"""The walk through the tiers: memory, then the SSD; each can be left out."""

from __future__ import annotations

import threading

from shardstream.storage.blocks import Block, Data, Uses
from shardstream.storage.claims import Claim
from shardstream.storage.disk import Disk
from shardstream.storage.memory import Memory

__all__ = ["Tiers"]


class Tiers:
    """The tiers of one reader. `mapped`: blocks on the SSD are mapped into memory, not copied."""

    def __init__(self, memory: Memory | None = None, disk: Disk | None = None, mapped: bool = False) -> None:
        self.memory, self.disk, self._mapped = memory, disk, mapped
        self.memory_bytes = self.disk_bytes = 0
        self._lock = threading.Lock()

    def find(self, block: Block) -> Data | None:
        """A block from the first tier that has it; a block of the SSD is then in memory, too."""
        found: Data | None = self.memory.get(block) if self.memory is not None else None
        if found is not None:
            with self._lock:
                self.memory_bytes += len(found)
            return found
        found = self.disk.get(block, self._mapped) if self.disk is not None else None
        if found is not None:
            with self._lock:
                self.disk_bytes += len(found)
            if not self._mapped:  # what is mapped is in memory already
                self._remember(block, found)
        return found

    def has(self, block: Block) -> bool:
        """Whether a tier seems to have the block."""
        return (self.memory is not None and self.memory.has(block)) or (
            self.disk is not None and self.disk.has(block)
        )

    def keep(self, block: Block, data: Data, claim: Claim | None, wait: float = 0.0) -> None:
        """Put a block into all tiers; the claim ends when the last of them has it."""
        self._remember(block, data)
        if self.disk is not None:
            self.disk.put(block, data, claim, wait)

    def _remember(self, block: Block, data: Data) -> None:
        if self.memory is not None and block.name != "index":  # readers keep indexes themselves
            self.memory.put(block, data)

    def plan(self, reader: object, uses: Uses) -> None:
        """Tell all tiers when the blocks of a reader are needed next."""
        for tier in (self.memory, self.disk):
            if tier is not None:
                tier.schedule.set(reader, uses)
