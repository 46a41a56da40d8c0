"""Blocks that were fetched ahead and not asked for yet, counted in bytes."""

from __future__ import annotations

from collections import OrderedDict

from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.fetch.in_flight import BlockRequest
from shardstream.storage.transport.backends import Data

__all__ = ["FetchedAhead"]


class FetchedAhead:
    """Blocks that were fetched ahead and not asked for yet; its methods are called one at a time.

    Blocks that are needed soon stay, whatever the budget says: `prefetch=` of the loader limits them. The
    others are spare: they came in the range of another block and are needed much later, or an epoch before
    has left them. They give way when the budget is exceeded.

    Args:
        tiers: Their budget counts the blocks that are in memory, and the blocks that are needed later from
            the moment when they are sent for.

    Attributes:
        spare_bytes: Bytes in memory of blocks that are needed later.
        on_disk_bytes: Bytes of blocks that are needed later and that only the SSD tier has.
        in_flight_bytes: Bytes of blocks that are needed later and are on their way.
    """

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._holder = tiers.budget.holder("fetched ahead")
        self._soon: dict[Block, Data] = {}
        self._spare: OrderedDict[Block, Data] = OrderedDict()
        self._on_disk: dict[Block, int] = {}
        self.spare_bytes = self.on_disk_bytes = self.in_flight_bytes = 0

    def __contains__(self, block: Block) -> bool:
        return block in self._soon or block in self._spare

    def get(self, block: Block) -> Data | None:
        """The bytes of a block that is in memory, or None."""
        found = self._soon.get(block)
        return self._spare.get(block) if found is None else found

    def sent(self, request: BlockRequest) -> None:
        """A block was sent for."""
        if not request.soon:
            self._count_in_flight(request.size)

    def ended(self, request: BlockRequest) -> None:
        """A block that was sent for is not on its way any more."""
        if not request.soon:
            self._count_in_flight(-request.size)

    def _count_in_flight(self, size: int) -> None:
        self.in_flight_bytes += size
        self._holder.count(size)

    def add(self, request: BlockRequest, data: Data) -> list[tuple[Block, Data]]:
        """Take a block into memory; returns the blocks that gave way."""
        self.drop(request.block)
        if request.soon:
            self._soon[request.block] = data
        else:
            self._spare[request.block] = data
            self.spare_bytes += len(data)
        self._holder.count(len(data))
        dropped = []
        while self._spare and self._tiers.room < 0:
            block = next(iter(self._spare))  # the oldest one
            dropped.append((block, self._spare[block]))
            self.drop(block)
        return dropped

    def add_on_disk(self, request: BlockRequest) -> None:
        """Note that the SSD tier has a block that is needed later."""
        self.drop_on_disk(request.block)
        self._on_disk[request.block] = request.size
        self.on_disk_bytes += request.size

    def drop(self, block: Block) -> None:
        """Let go of a block in memory, if it is there."""
        data = self._soon.pop(block, None)
        if data is None:
            data = self._spare.pop(block, None)
            self.spare_bytes -= 0 if data is None else len(data)
        if data is not None:
            self._holder.count(-len(data))

    def drop_on_disk(self, block: Block) -> None:
        """A block was asked for: it no longer counts as one that only the SSD tier has."""
        self.on_disk_bytes -= self._on_disk.pop(block, 0)

    def restart(self) -> None:
        """An epoch begins: the blocks that are here may never be asked for. So they may give way."""
        self._on_disk.clear()
        self.on_disk_bytes = 0
        for block, data in self._soon.items():
            self._spare[block] = data
            self.spare_bytes += len(data)
        self._soon.clear()
