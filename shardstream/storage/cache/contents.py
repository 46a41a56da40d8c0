"""The contents of the SSD tier: listed, checked or deleted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.entries import Entries, cost, is_sound
from shardstream.storage.cache.manifests import Manifests

__all__ = ["Contents", "DiskInfo"]


@dataclass
class DiskInfo:
    """The contents of a cache.

    Attributes:
        path: Where they lie.
        limit: Bytes of disk that they may take; None if it is not known.
        blocks: How many blocks there are.
        bytes: Bytes of disk of blocks and manifests.
        groups: How many shards they are of.
        raw_blocks: How many of the blocks are decompressed.
        processes: How many other processes have the cache open.
        foreign: Files that the cache did not make and leaves as they are.
        manifests: How many manifests there are.
        damaged: The names of damaged files.
    """

    path: str
    limit: int | None = None
    blocks: int = 0
    bytes: int = 0
    groups: int = 0
    raw_blocks: int = 0
    processes: int = 0
    foreign: int = 0
    manifests: int = 0
    damaged: list[str] = field(default_factory=list)


class Contents:
    """Lists, checks and deletes what lies in a cache.

    Args:
        entries: The files.
        manifests: The manifests among them.
        delete: Deletes a block by its group, name and size; whether it was there.
    """

    def __init__(
        self, entries: Entries, manifests: Manifests, delete: Callable[[str, str, int], bool]
    ) -> None:
        self._entries, self._manifests, self._delete = entries, manifests, delete

    def info(self, result: DiskInfo, check: bool) -> DiskInfo:
        """`result`, with what is there added; see `DiskTier.info`."""
        foreign: list[str] = []
        groups = set()
        for group, name, size in self._entries.all(foreign.append):
            groups.add(group)
            result.blocks += 1
            result.bytes += cost(size)
            result.raw_blocks += name.endswith(".raw")
            if check and self.state(Block(group, name, size)) == "damaged":
                result.damaged.append(f"{group}/{name}")
        result.groups, result.foreign = len(groups), len(foreign)
        result.manifests = len(self._manifests)
        result.bytes += self._manifests.used()
        if check:
            result.damaged += self._manifests.damaged()
        return result

    def state(self, block: Block) -> str:
        """Whether a block is "sound", "missing" or "damaged"."""
        try:
            return "sound" if is_sound(block, self._entries.read(block)) else "damaged"
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "damaged"

    def clear(self, result: DiskInfo) -> DiskInfo:
        """Delete all; returns `result`, with what was deleted added."""
        groups = set()
        for group, name, size in list(self._entries.all()):
            with contextlib.suppress(OSError):
                if self._delete(group, name, size):
                    groups.add(group)
                    result.blocks += 1
                    result.bytes += cost(size)
        result.groups, result.manifests = len(groups), len(self._manifests)
        result.bytes += self._manifests.clear()
        return result
