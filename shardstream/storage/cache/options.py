"""The options of a cache."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from typing import ClassVar, Literal

from shardstream.errors import OptionError, StorageError
from shardstream.format.shown import one_line
from shardstream.format.sizes import parse_size
from shardstream.memory import MemoryBudget
from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.cache.memory import MemoryTier
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.secrets import redact

__all__ = ["Cache", "ReadOnlyCache"]

log = logging.getLogger("shardstream.cache")


@dataclass(frozen=True)
class Cache:
    """What may stay on this machine of the datasets that are read: files on a disk, and bytes in memory.

    Half of `ram` is for frames that a running epoch will need again. The other half is for all else that a
    dataset has in memory: indexes, blocks that were fetched ahead, blocks that wait to be written to `dir`,
    and blocks of earlier epochs in what is left. Blocks that are needed soon are fetched even if it is full:
    `prefetch=` of the loader limits them. Up to 64 MiB of blocks may wait to be written even if it is
    smaller.

    Args:
        dir: A folder on a local disk. All processes of a user on one machine share it, and each frame is
            fetched once for all of them.
        disk: Bytes for files in `dir`, a number or a text such as "200GB". By default 9 tenths of the bytes
            that are free at the start.
        ram: Bytes of memory.
        disk_format: "stored" for frames as they are in the shards; "raw" for decompressed frames, which later
            epochs map into memory.
        always: Whether datasets at local paths, such as on a network file system, go through `dir`, too.
            Otherwise they are read where they are.
        offline: Whether no store is asked for anything. Datasets are read as they were when the cache saw
            them last. StorageError says which part is missing.

    Raises:
        OptionError: An option has a value that it cannot have, or needs another one.
    """

    dir: str | os.PathLike[str] | None = None
    disk: str | int | None = None
    ram: str | int = "1GiB"
    disk_format: Literal["stored", "raw"] = "stored"
    always: bool = False
    offline: bool = False
    _read_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.dir is not None and "://" in os.fspath(self.dir):
            where = redact(os.fspath(self.dir))
            raise OptionError(f"a cache is a folder on a local disk, such as /nvme/cache, and not {where}")
        parse_size(self.ram, "ram")
        if self.disk is not None:
            parse_size(self.disk, "disk")
        if self.disk_format not in ("stored", "raw"):
            raise OptionError(f"disk_format={self.disk_format!r} must be 'stored' or 'raw'")
        for name in ("disk", "disk_format", "always", "offline"):
            value = getattr(self, name)
            if self.dir is None and value not in (None, "stored", False):
                raise OptionError(f"{name}={value!r} needs a dir to keep files in")

    def __repr__(self) -> str:
        _, *others = dataclasses.fields(self)
        named = [
            f"{option.name}={value!r}"
            for option in others
            if (value := getattr(self, option.name)) != option.default
        ]
        where = [] if self.dir is None else [repr(os.fspath(self.dir))]
        return one_line(type(self).__name__, where + named)

    @property
    def raw(self) -> bool:
        """Whether frames are stored decompressed."""
        return self.disk_format == "raw"

    @property
    def ram_for_frames(self) -> int:
        """The bytes of `ram` for frames that a running epoch will need again."""
        return parse_size(self.ram, "ram") // 2

    def tiers(self) -> Tiers:
        """The tiers of one reader. If the SSD tier cannot be opened, a warning says so and the store is read.

        Raises:
            StorageError: The SSD tier cannot be opened, and `offline` rules out the store.
        """
        disk = None
        if self.dir is not None:
            try:
                disk = self.open_disk()
            except StorageError as error:
                if self.offline:
                    raise
                log.warning("%s; the store is read instead", error)
        return Tiers(MemoryTier(self.budget()), disk, mapped=self.raw, read_only=self._read_only)

    def budget(self) -> MemoryBudget:
        """A new budget, of the half of `ram` that is not for the frames of a running epoch."""
        return MemoryBudget(self.ram_for_frames)

    def open_disk(self) -> DiskTier:
        """The SSD tier; StorageError if it cannot be opened."""
        assert self.dir is not None
        return DiskTier.open(self.dir, None if self.disk is None else parse_size(self.disk, "disk"))


class ReadOnlyCache(Cache):
    """A cache that is read and stays as it is."""

    _read_only: ClassVar[bool] = True
