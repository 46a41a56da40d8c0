"""The SSD tier: blocks as files, shared by all processes of a user on one machine."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import weakref
from dataclasses import dataclass, field

from shardstream.errors import StorageError
from shardstream.storage.block_files import SEAL, BlockFiles, cost, is_sound
from shardstream.storage.blocks import Block, Schedule
from shardstream.storage.claims import Claim, Claims
from shardstream.storage.eviction import Eviction
from shardstream.storage.ledger import Ledger
from shardstream.storage.stores import Data
from shardstream.storage.write_behind import WriteBehind

__all__ = ["Disk", "DiskInfo"]

log = logging.getLogger("shardstream.cache")

_AHEAD = 8  # the part of the limit that is for what all processes fetch long before it is needed
_FOREIGN = (errno.ELOOP, errno.ENOTDIR, errno.EPERM, errno.ENXIO)  # what lies there is not the cache's


@dataclass
class DiskInfo:
    """What lies in a cache. `foreign` counts files that the cache did not make and leaves alone."""

    path: str
    limit: int | None = None
    blocks: int = 0
    bytes: int = 0
    groups: int = 0
    raw_blocks: int = 0
    processes: int = 0
    foreign: int = 0
    damaged: list[str] = field(default_factory=list)


class Disk:
    """Blocks in a directory, at most `limit` bytes of them; may be used by many threads.

    Costs a copy per read, or none with `mapped`. Writing is done behind, by a thread that ends when
    there is nothing left to write; what fails is a warning in the log, and the block is not kept.
    """

    def __init__(self, folder: str, limit: int | None) -> None:
        self.path = self.path_in(folder)
        self.schedule = Schedule()
        self.damaged = 0
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._files = files = BlockFiles(self.path)
            self._claims = Claims(files.open_claims())
            self._ledger = Ledger(files.ledgers)
            files.drop_partial(self._ledger.processes())
            self.limit = limit or self._ledger.total() + files.free() * 9 // 10
        except OSError as error:
            raise StorageError(f"{self.path}: no cache here: {error.strerror or error}") from error
        self._eviction = Eviction(files, self._ledger, self._claims, self.schedule)
        self._writes = WriteBehind(self.path)
        self._written = 0

    @staticmethod
    def path_in(folder: str) -> str:
        """Where the cache lies in a directory that users may share."""
        return os.path.join(folder, f"shardstream-1-{os.geteuid()}")

    @classmethod
    def open(cls, folder: str | os.PathLike[str], limit: int | None = None) -> Disk:
        """The cache in a directory, one object for all readers of this process.

        limit: bytes; by default 9 tenths of what is free there.
        """
        path = os.path.realpath(os.path.expanduser(os.fspath(folder)))
        with _opening:
            found = _open.get(path)
            if found is None:
                found = _open[path] = cls(path, limit)
            elif limit is not None:
                found.limit = limit
            return found

    @property
    def used(self) -> int:
        """The bytes in use, those about to be written included."""
        return self._ledger.total()

    @property
    def alone(self) -> bool:
        """Whether no other process has the cache open."""
        return len(self._ledger.processes()) == 1

    def room(self, filled: int) -> int:
        """The bytes that this process may fill with what is needed much later, `filled` of them so far.

        That is what is free, but for a small share; or that share: a cache that was full once stays full.
        """
        share = self.limit // _AHEAD
        free = self.limit - share - self.used - self._writes.queued
        return max(free, share // max(1, len(self._ledger.processes())) - filled)

    def has(self, block: Block) -> bool:
        """Whether the block is there, by its name and size."""
        return self._files.has(block)

    def get(self, block: Block, mapped: bool = False) -> memoryview | None:
        """The bytes of a block, checked; None if it is not there, or was damaged and is now gone."""
        try:
            stored = self._files.read(block, mapped)
            if is_sound(block, stored):
                return stored[: block.size]
            self.damaged += 1
            self._eviction.delete(block.group, block.name, len(stored) - SEAL.size)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _FOREIGN:
                self._warn("foreign", "files that the cache did not make are left alone")
            else:
                self._warn("reading", f"reading fails, the store is read instead: {error.strerror}")
        return None

    def _warn(self, kind: str, message: str) -> None:
        with self._lock:
            if kind in self._warned:
                return
            self._warned.add(kind)
        log.warning("%s: %s", self.path, message)

    def claim(self, block: Block) -> Claim | None:
        """The right to fetch a block; None while another thread or process holds it."""
        return self._claims.take(f"{block.group}/{block.name}")

    def put(self, block: Block, data: Data, claim: Claim | None = None, wait: float = 0.0) -> bool:
        """Write a block behind the caller's back, and then release the claim; False if it is not kept.

        wait: seconds to wait for a place in the queue, where it is full.
        """
        taken = cost(block.size) <= self.limit and self._writes.put(
            block.size, lambda: self._write(block, data), claim, wait
        )
        if not taken and claim is not None:
            claim.release()
        return taken

    def _write(self, block: Block, data: Data) -> None:
        price, kept = cost(block.size), False
        self._ledger.add(price)
        try:
            if self._eviction.make_room(block, price, self.limit):
                self._written += 1
                kept = self._files.write(block, data, f"{self._ledger.name}-{self._written}")
        finally:
            if not kept:
                self._ledger.add(-price)

    def flush(self, wait: float) -> bool:
        """Wait until all is written; whether it was in time."""
        return self._writes.flush(wait)

    def info(self, check: bool = False) -> DiskInfo:
        """What is there; with `check`, every block is read and what is damaged is named."""
        strange: list[str] = []
        result = DiskInfo(self.path, self.limit, processes=len(self._ledger.processes()) - 1)
        groups = set()
        for group, name, size in self._files.all(strange.append):
            groups.add(group)
            result.blocks += 1
            result.bytes += cost(size)
            result.raw_blocks += name.endswith(".raw")
            if check and self.state(Block(group, name, size)) == "damaged":
                result.damaged.append(f"{group}/{name}")
        result.groups, result.foreign = len(groups), len(strange)
        return result

    def state(self, block: Block) -> str:
        """Whether a block is "sound", "missing" or "damaged"; it is read, and left as it is."""
        try:
            return "sound" if is_sound(block, self._files.read(block)) else "damaged"
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "damaged"

    def clear(self) -> DiskInfo:
        """Delete all blocks, and nothing that the cache did not make; returns what was deleted."""
        result, groups = DiskInfo(self.path, self.limit), set()
        for group, name, size in list(self._files.all()):
            with contextlib.suppress(OSError):
                if self._eviction.delete(group, name, size):
                    groups.add(group)
                    result.blocks += 1
                    result.bytes += cost(size)
        result.groups = len(groups)
        return result


_open: weakref.WeakValueDictionary[str, Disk] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _forget() -> None:
    """In a child: its parent's threads are not here to end what they were doing."""
    global _open, _opening
    _open, _opening = weakref.WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_forget)
