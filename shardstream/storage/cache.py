"""The options of a cache, and the walk through its tiers: memory, then the SSD; each can be left out."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass

from shardstream.errors import OptionError, StorageError
from shardstream.format.sizes import parse_size
from shardstream.storage.blocks import Block, Uses
from shardstream.storage.claims import Claim
from shardstream.storage.disk import Disk
from shardstream.storage.memory import Memory
from shardstream.storage.stores import Data

__all__ = ["Cache", "Tiers"]

log = logging.getLogger("shardstream.cache")


@dataclass(frozen=True)
class Cache:
    """What may be kept: files in `dir` up to `disk` bytes, and frames in memory up to `ram` bytes.

    dir: on a local disk; all processes of a user on one machine share it, and fetch each frame once.
    disk: by default 9 tenths of what is free there at the start.
    disk_format: "stored" keeps frames as they are in the shards; "raw" keeps them decompressed, so
        that later epochs map them into memory.
    always: datasets at local paths, such as on a network file system, go through `dir`, too.
        Otherwise they are read where they are.
    """

    dir: str | os.PathLike[str] | None = None
    disk: str | int | None = None
    ram: str | int = "1GiB"
    disk_format: str = "stored"
    always: bool = False

    def __post_init__(self) -> None:
        parse_size(self.ram, "ram")
        if self.disk is not None:
            parse_size(self.disk, "disk")
        if self.disk_format not in ("stored", "raw"):
            raise OptionError(f"disk_format={self.disk_format!r} must be 'stored' or 'raw'")
        for name, value in (("disk", self.disk), ("disk_format", self.disk_format), ("always", self.always)):
            if self.dir is None and value not in (None, "stored", False):
                raise OptionError(f"{name}={value!r} needs a dir to keep files in")

    @property
    def raw(self) -> bool:
        """Whether frames are kept decompressed."""
        return self.disk_format == "raw"

    @property
    def keep(self) -> int:
        """The bytes of `ram` for frames that a running epoch will need again; the rest is the RAM tier's."""
        return parse_size(self.ram, "ram") // 2

    def tiers(self) -> Tiers:
        """The tiers; an SSD tier that cannot be opened is a warning, and left out."""
        disk = None
        if self.dir is not None:
            try:
                disk = self.open_disk()
            except StorageError as error:
                log.warning("%s; the store is read instead", error)
        return Tiers(Memory(self.keep), disk, mapped=self.raw)

    def open_disk(self) -> Disk:
        """The SSD tier, or StorageError."""
        assert self.dir is not None
        return Disk.open(self.dir, None if self.disk is None else parse_size(self.disk, "disk"))


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

    def keep(self, block: Block, data: Data, claim: Claim | None, wait: float = 0.0) -> bool:
        """Put a block into all tiers; the claim ends when the last has it. Says whether the SSD takes it."""
        self._remember(block, data)
        return self.disk is not None and self.disk.put(block, data, claim, wait)

    def _remember(self, block: Block, data: Data) -> None:
        if self.memory is not None and block.name != "index":  # readers keep indexes themselves
            self.memory.put(block, data)

    @property
    def alone(self) -> bool:
        """Whether no other process uses the SSD tier."""
        return self.disk is None or self.disk.alone

    def plan(self, reader: object, uses: Uses) -> None:
        """Tell all tiers when the blocks of a reader are needed next."""
        for tier in (self.memory, self.disk):
            if tier is not None:
                tier.schedule.set(reader, uses)
