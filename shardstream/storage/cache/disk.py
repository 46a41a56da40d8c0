"""The SSD tier: blocks as files, shared by all processes of a user on one machine."""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Callable

from shardstream.errors import StorageError
from shardstream.format.manifest import Manifest
from shardstream.memory import Holder
from shardstream.storage.cache.blocks import Block, NextUses
from shardstream.storage.cache.contents import Contents, DiskInfo
from shardstream.storage.cache.entries import SEAL, Entries, cost, is_sound, unit
from shardstream.storage.cache.eviction import Eviction
from shardstream.storage.cache.locks import FetchLock, FetchLocks
from shardstream.storage.cache.manifests import Manifests
from shardstream.storage.cache.usage import Usage
from shardstream.storage.cache.write_behind import WriteBehind
from shardstream.storage.transport.backends import Data

__all__ = ["DiskInfo", "DiskTier"]

log = logging.getLogger("shardstream.cache")

_AHEAD = (
    8  # one part in so many of the limit is for blocks that all processes fetch long before they are needed
)
_NAMES = 128  # the names of blocks take at most one part in so many of the blocks' bytes
_FOREIGN = (errno.ELOOP, errno.ENOTDIR, errno.EPERM, errno.ENXIO)  # the cache did not make what lies there


class DiskTier:
    """Blocks as files in a directory; may be used by many threads and processes.

    A read costs a copy, or none with `mapped`. A thread writes the blocks, and ends when there is nothing
    left to write. A write that fails is a warning in the log, and the block is not there.

    Args:
        folder: The directory.
        limit: Bytes of disk, folders included; None for 9 tenths of the free ones.

    Attributes:
        next_uses: When the blocks are needed, which decides about eviction.
    """

    def __init__(self, folder: str, limit: int | None) -> None:
        self.path = self.path_in(folder)
        self.next_uses = NextUses()
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._entries = entries = Entries(self.path)
            self._locks = FetchLocks(entries.open_lock_file())
            self._usage = Usage(entries.usage_folder)
            entries.drop_partial(self._usage.processes())
            self.limit = limit or self._usage.total() + entries.free() * 9 // 10
        except OSError as error:
            raise StorageError(f"{self.path}: no cache here: {error.strerror or error}") from error
        self._manifests = Manifests(entries, self._usage.add)
        self._eviction = Eviction(entries, self._usage, self._locks, self.next_uses, self._manifests.used)
        self._contents = Contents(entries, self._manifests, self._eviction.delete)
        self._writes = WriteBehind(self.path)
        self._written = 0

    @staticmethod
    def path_in(folder: str) -> str:
        """Where the cache lies in a directory that users may share."""
        return os.path.join(folder, f"shardstream-1-{os.geteuid()}")

    @classmethod
    def open(cls, folder: str | os.PathLike[str], limit: int | None = None) -> DiskTier:
        """The cache in a directory, one object for all readers of this process.

        Args:
            folder: The directory.
            limit: Bytes of disk; by default 9 tenths of the free ones.

        Raises:
            StorageError: There can be no cache in this directory.
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
        """The bytes of disk in use, blocks that are being written included."""
        return self._usage.total()

    @property
    def capacity(self) -> int:
        """The bytes of the limit that are for blocks and manifests, and not for folders and counts."""
        counts = len(self._usage.processes()) * unit(0)
        # A folder that lists thousands of small blocks is larger than one unit.
        return self.limit - self._entries.overhead() - counts - self.used // _NAMES

    @property
    def alone(self) -> bool:
        """Whether no other process has the cache open."""
        return len(self._usage.processes()) == 1

    def room(self, filled: int) -> int:
        """The bytes that this process may add of blocks that are needed much later.

        They are the free bytes, less a small share. If that is less, they are this process's part of the
        share, for a cache that was full once stays full.

        Args:
            filled: The bytes of such blocks that it has added and that were not asked for yet.
        """
        limit = self.capacity
        share = limit // _AHEAD
        free = limit - share - self.used - self._writes.queued
        return max(free, share // max(1, len(self._usage.processes())) - filled)

    def has(self, block: Block) -> bool:
        """Whether the block is there, by its name and size."""
        return self._entries.has(block)

    def get(
        self, block: Block, mapped: bool = False, damaged: Callable[[], object] = lambda: None
    ) -> memoryview | None:
        """The bytes of a block, checked; None if it is not there, or was damaged and is now deleted.

        Args:
            block: The block.
            mapped: Whether its file is mapped into memory, and not copied.
            damaged: It is called if the block is damaged.
        """
        try:
            stored = self._entries.read(block, mapped)
            if is_sound(block, stored):
                return stored[: block.size]
            damaged()
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

    def lock(self, block: Block) -> FetchLock | None:
        """The right to fetch a block; None while another thread or process has it."""
        return self._locks.take(f"{block.group}/{block.name}")

    def put(
        self,
        block: Block,
        data: Data,
        lock: FetchLock | None = None,
        wait: float = 0.0,
        holder: Holder | None = None,
    ) -> bool:
        """Let a block be written; returns at once.

        Args:
            block: The block.
            data: Its bytes.
            lock: Its fetch lock, which is released when the block is written, or is not going to be.
            wait: Seconds to wait for a place in the queue, if the queue is full.
            holder: What counts the bytes until they are written.

        Returns:
            Whether it is going to be written, as far as is known.
        """
        taken = cost(block.size) <= self.capacity and self._writes.put(
            block.size, lambda: self._write(block, data), lock, wait, holder
        )
        if not taken and lock is not None:
            lock.release()
        return taken

    def _write(self, block: Block, data: Data) -> None:
        price, written = cost(block.size), False
        self._usage.add(price)
        try:
            if self._eviction.make_room(block, price, self.capacity):
                written = self._entries.write(block, data, self._partial())
        finally:
            if not written:
                self._usage.add(-price)

    def _partial(self) -> str:
        """A name for a file that is being written."""
        self._written += 1
        return f"{self._usage.name}-{self._written}"

    def lock_manifest(self, url: str, fingerprint: str) -> FetchLock | None:
        """The right to fetch a manifest; None while another thread or process has it."""
        return self._locks.take(f"{url.rstrip('/')} {fingerprint}")

    def put_manifest(self, url: str, fingerprint: str, data: bytes, lock: FetchLock | None = None) -> None:
        """Let the manifest be written that the store at `url` gave just now; returns at once.

        Args:
            url: Where the dataset is.
            fingerprint: Of the manifest.
            data: The manifest, for `manifest_files.load`.
            lock: Its fetch lock, which is released when it is written, or is not going to be.
        """

        def write() -> None:
            self._manifests.put(
                url, fingerprint, data, self._partial(),
                lambda price: self._eviction.make_room(None, price, self.capacity),
            )  # fmt: skip
            self._manifests.shrink(self.limit)

        if not self._writes.put(len(data), write, lock) and lock is not None:
            lock.release()

    def saw_manifest(self, url: str, fingerprint: str) -> None:
        """Take down that the store at `url` has this manifest, which is here, just now."""
        self._manifests.seen(url, fingerprint)

    def manifest(self, url: str, fingerprint: str | None = None) -> Manifest | None:
        """The manifest of the dataset at `url` with this fingerprint; by default, the one that came last."""
        if fingerprint is None:
            return self._manifests.newest(url)
        return self._manifests.get(url, fingerprint)

    def flush(self, wait: float) -> bool:
        """Wait until all is written, at most so many seconds; whether it was in time."""
        return self._writes.flush(wait)

    def info(self, check: bool = False) -> DiskInfo:
        """The contents; with `check`, every file is read, and the damaged ones are named."""
        others = len(self._usage.processes()) - 1
        return self._contents.info(DiskInfo(self.path, self.limit, processes=others), check)

    def state(self, block: Block) -> str:
        """Whether a block is "sound", "missing" or "damaged". It is read, and stays as it is."""
        return self._contents.state(block)

    def clear(self) -> DiskInfo:
        """Delete all blocks and manifests that the cache made; returns what was deleted."""
        return self._contents.clear(DiskInfo(self.path, self.limit))


_open: weakref.WeakValueDictionary[str, DiskTier] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _forget() -> None:
    """In a child process: the threads of its parent, which would finish their work, are not here."""
    global _open, _opening
    _open, _opening = weakref.WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_forget)
