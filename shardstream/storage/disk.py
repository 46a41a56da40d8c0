"""The SSD tier: blocks as files, shared by all processes of a user on one machine.

DIR/shardstream-1-UID/
    blocks/GROUP/NAME    a block, then 8 bytes: the xxh3_64 of it, seeded by its group and name
    ledgers/PROCESS      what each process has added and removed
    partial/PROCESS-N    a block that is being written
    claims               byte-range locks: who fetches which block

A block is a frame, so that presence is a name, publishing is a link and eviction is an unlink: a
reader keeps what it has opened, and no kill leaves half a block behind a name. Nothing read is
trusted without its checksum. Only files of the right owner, kind and name are read or deleted.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import mmap
import os
import re
import stat
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from shardstream.errors import StorageError
from shardstream.storage.blocks import Block, Data, Schedule, seal
from shardstream.storage.claims import Claim, Claims
from shardstream.storage.ledger import Ledger

__all__ = ["Disk", "DiskInfo"]

log = logging.getLogger("shardstream.cache")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NAME = re.compile(r"(?:\d+(?:\.raw)?|index|whole)\Z")
_GROUP = re.compile(r"[0-9a-f]{32}\Z")
_SEAL = struct.Struct("<Q")
_QUEUE = 256 << 20  # bytes that may wait to be written
_UNIT = 4096  # what file systems allocate
_PATIENCE = 10.0  # seconds that a writer waits while another process makes room
_SLACK = 64  # the part of the limit that making room frees at once
_AHEAD = 8  # the part of the limit that is for what all processes fetch long before it is needed
_SKIPPED = 1024  # most blocks that are not written after one could not be


def cost(size: int) -> int:
    """The bytes of disk that a block takes."""
    return -(-(size + _SEAL.size) // _UNIT) * _UNIT


class _Write(NamedTuple):
    block: Block
    data: Data
    claim: Claim | None


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
        self._idle = threading.Condition(self._lock)
        self._queue: deque[_Write] = deque()
        self._queued = 0
        self._writing = False
        self._failures = self._skip = self._written = 0
        # Blocks needed as late are not worth a look at all others, until many bytes were refused.
        self._latest, self._refused = math.inf, 0
        self._descriptors: list[int] = []
        # Not at exit: the writing thread may still be at work then.
        weakref.finalize(self, _close, self._descriptors).atexit = False
        try:
            self._make(folder)
        except OSError as error:
            raise StorageError(f"{self.path}: no cache here: {error.strerror or error}") from error
        self.limit = limit or self._room()

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

    def _make(self, folder: str) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        self._root = self._keep_open(os.open(self.path, _FOLDER))
        found = os.fstat(self._root)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "it belongs to somebody else, or others have access to it")
        self._blocks, folders, self._partial = map(self._subfolder, ("blocks", "ledgers", "partial"))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._claims = Claims(os.open("claims", flags, 0o600, dir_fd=self._root))
        self._ledger = Ledger(folders)
        living = self._ledger.processes()
        for name in os.listdir(self._partial):
            if name.partition("-")[0] not in living:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._partial)

    def _keep_open(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def _subfolder(self, name: str) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._root)
        descriptor = self._keep_open(os.open(name, _FOLDER, dir_fd=self._root))
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"its folder {name} belongs to somebody else")
        return descriptor

    def _room(self) -> int:
        found = os.fstatvfs(self._root)
        return self._ledger.total() + found.f_bavail * found.f_frsize * 9 // 10

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
        free = self.limit - share - self.used - self._queued
        return max(free, share // max(1, len(self._ledger.processes())) - filled)

    # Reading

    def has(self, block: Block) -> bool:
        """Whether the block is there, by its name and size."""
        with contextlib.suppress(OSError):
            found = os.stat(f"{block.group}/{block.name}", dir_fd=self._blocks, follow_symlinks=False)
            return stat.S_ISREG(found.st_mode) and found.st_size == block.size + _SEAL.size
        return False

    def get(self, block: Block, mapped: bool = False) -> memoryview | None:
        """The bytes of a block, checked; None if it is not there, or was damaged and is now gone."""
        try:
            with self._group(block.group) as group:
                file = os.open(block.name, _FILE, dir_fd=group)
                try:
                    found = os.fstat(file)
                    if not _is_ours(found):
                        self._warn(
                            "foreign", f"{self.path}: files that the cache did not make are left alone"
                        )
                        return None
                    data = self._read(file, found.st_size, mapped)
                finally:
                    os.close(file)
                if _is_sound(block, data):
                    return data[: block.size]
                self.damaged += 1
                self._remove(group, block.name, found.st_size - _SEAL.size)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EPERM, errno.ENXIO):
                self._warn("foreign", f"{self.path}: files that the cache did not make are left alone")
            else:
                self._warn(
                    "reading", f"{self.path}: reading fails, the store is read instead: {error.strerror}"
                )
        return None

    @staticmethod
    def _read(file: int, size: int, mapped: bool) -> memoryview:
        if mapped and size:
            return memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
        with open(file, "rb", buffering=0, closefd=False) as raw:
            return memoryview(raw.read(size))

    @contextlib.contextmanager
    def _group(self, name: str) -> Iterator[int]:
        """A group's folder, opened without following links."""
        descriptor = os.open(name, _FOLDER, dir_fd=self._blocks)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "a folder of somebody else")
            yield descriptor
        finally:
            os.close(descriptor)

    def _remove(self, group: int, name: str, size: int) -> bool:
        try:
            os.unlink(name, dir_fd=group)
        except FileNotFoundError:
            return False
        self._ledger.add(-cost(size))
        return True

    def _warn(self, kind: str, message: str) -> None:
        with self._lock:
            if kind in self._warned:
                return
            self._warned.add(kind)
        log.warning(message)

    def claim(self, block: Block) -> Claim | None:
        """The right to fetch a block; None while another thread or process holds it."""
        return self._claims.take(f"{block.group}/{block.name}")

    # Writing

    def put(self, block: Block, data: Data, claim: Claim | None = None, wait: float = 0.0) -> bool:
        """Write a block behind the caller's back, and then release the claim; False if it is not kept.

        wait: seconds to wait for a place in the queue, where it is full.
        """
        with self._idle:
            taken = self._skip <= 0 and cost(block.size) <= self.limit
            if taken and self._queued + block.size > _QUEUE and self._queue:
                taken = self._idle.wait_for(lambda: self._queued + block.size <= _QUEUE, wait)
            if taken:
                self._queue.append(_Write(block, data, claim))
                self._queued += block.size
                if not self._writing:
                    try:
                        threading.Thread(target=self._work, name="shardstream-cache", daemon=True).start()
                        self._writing = True
                    except RuntimeError:  # the interpreter is about to end
                        taken = False
                        self._queued -= self._queue.pop().block.size
            else:
                self._skip -= 1
        if not taken and claim is not None:
            claim.release()
        return taken

    def flush(self, wait: float) -> bool:
        """Wait until all is written; whether it was in time."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._writing, wait)

    def _work(self) -> None:
        while True:
            with self._idle:
                if not self._queue:
                    self._writing = False
                    self._idle.notify_all()
                    return
                write = self._queue.popleft()
            try:
                self._write(write.block, write.data)
                self._failures = 0
            except Exception as error:  # noqa: BLE001  # whatever it is, delivery goes on without the SSD
                self._failures += 1
                with self._lock:
                    self._skip = min(2**self._failures, _SKIPPED)
                reason = getattr(error, "strerror", None) or repr(error)
                self._warn("writing", f"{self.path}: writing fails, the store is read instead: {reason}")
            finally:
                if write.claim is not None:
                    write.claim.release()
                with self._idle:
                    self._queued -= write.block.size
                    self._idle.notify_all()

    def _write(self, block: Block, data: Data) -> None:
        price, kept = cost(block.size), False
        self._ledger.add(price)
        try:
            if self._ledger.total() > self.limit and not self._make_room(block, price):
                return
            self._written += 1
            partial = f"{self._ledger.name}-{self._written}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                with open(os.open(partial, flags, 0o600, dir_fd=self._partial), "wb") as file:
                    file.writelines((data, _SEAL.pack(seal(block, data))))
                kept = self._publish(partial, block)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial, dir_fd=self._partial)
        finally:
            if not kept:
                self._ledger.add(-price)

    def _publish(self, partial: str, block: Block) -> bool:
        for _ in range(4):  # the folder of the group may be deleted meanwhile, when its last block goes
            with contextlib.suppress(FileExistsError):
                os.mkdir(block.group, 0o700, dir_fd=self._blocks)
            with contextlib.suppress(FileNotFoundError), self._group(block.group) as group:
                try:
                    os.link(partial, block.name, src_dir_fd=self._partial, dst_dir_fd=group)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                        raise
                    os.rename(partial, block.name, src_dir_fd=self._partial, dst_dir_fd=group)
                return True
        raise FileNotFoundError(errno.ENOENT, "the directory is gone")

    # Making room

    def _make_room(self, block: Block, price: int) -> bool:
        """Delete what is needed latest, and later than a block, until there is room for its bytes.

        These are counted already. False if there is too little: it is not worth keeping then.
        """
        own = self.schedule.group(block.group)(block.name)
        if own >= self._latest and self._refused < self.limit // _SLACK:
            self._refused += price
            return False
        deadline, pause = time.monotonic() + _PATIENCE, threading.Event()
        while (turn := self._claims.take("evict")) is None and time.monotonic() < deadline:
            if self._ledger.total() <= self.limit:
                return True
            pause.wait(0.02)  # locks of other processes can only be polled
        try:
            goal = self.limit - self.limit // _SLACK
            self._latest, self._refused = math.inf, 0
            for use, group, name, size in sorted(self._candidates(price), key=lambda found: -found[0]):
                if self._ledger.total() <= goal:
                    break
                if use <= own:
                    self._latest = own
                    break
                self._delete(group, name, size)
            return self._ledger.total() <= self.limit
        finally:
            if turn is not None:
                turn.release()

    def _delete(self, group: str, name: str, size: int) -> bool:
        """Delete a block, and its folder with the last one in it."""
        deleted = False
        with contextlib.suppress(OSError):
            with self._group(group) as folder:
                deleted = self._remove(folder, name, size)
            os.rmdir(group, dir_fd=self._blocks)
        return deleted

    def _candidates(self, price: int) -> list[tuple[float, str, str, int]]:
        """(next use, group, name, size) of all blocks; sets the ledger right where it has drifted."""
        found, total, largest = [], 0, 0
        current, next_use = "", self.schedule.group("")
        for group, name, size in self._all():
            if group != current:
                current, next_use = group, self.schedule.group(group)
            found.append((next_use(name), group, name, size))
            total += cost(size)
            largest = max(largest, cost(size))
        drift = total + price - self._ledger.total()
        # Blocks that are being written are counted, but not seen here.
        if abs(drift) > self.limit // _SLACK + largest * (len(self._ledger.processes()) + 1):
            self._ledger.add(drift)
        return found

    def _all(self, foreign: Callable[[str], None] | None = None) -> Iterator[tuple[str, str, int]]:
        """(group, name, size) of all blocks that the cache made."""
        for group in os.listdir(self._blocks):
            try:
                with self._group(group) as folder, os.scandir(folder) as entries:
                    if not _GROUP.match(group):
                        raise NotADirectoryError
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            found = entry.stat(follow_symlinks=False)
                            if _NAME.match(entry.name) and _is_ours(found):
                                yield group, entry.name, found.st_size - _SEAL.size
                            elif foreign is not None:
                                foreign(f"{group}/{entry.name}")
            except FileNotFoundError:
                pass
            except OSError:
                if foreign is not None:
                    foreign(group)

    # For people

    def info(self, check: bool = False) -> DiskInfo:
        """What is there; with `check`, every block is read and what is damaged is named."""
        strange: list[str] = []
        result = DiskInfo(self.path, self.limit, processes=len(self._ledger.processes()) - 1)
        groups = set()
        for group, name, size in self._all(strange.append):
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
            with self._group(block.group) as group:
                file = os.open(block.name, _FILE, dir_fd=group)
                try:
                    found = os.fstat(file)
                    data = (
                        self._read(file, found.st_size, mapped=False) if _is_ours(found) else memoryview(b"")
                    )
                finally:
                    os.close(file)
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "damaged"
        return "sound" if _is_sound(block, data) else "damaged"

    def clear(self) -> DiskInfo:
        """Delete all blocks, and nothing that the cache did not make; returns what was deleted."""
        result, groups = DiskInfo(self.path, self.limit), set()
        for group, name, size in list(self._all()):
            if self._delete(group, name, size):
                groups.add(group)
                result.blocks += 1
                result.bytes += cost(size)
        result.groups = len(groups)
        return result


def _is_sound(block: Block, data: memoryview) -> bool:
    size = block.size
    return len(data) == size + _SEAL.size and _SEAL.unpack(data[size:])[0] == seal(block, data[:size])


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


_open: weakref.WeakValueDictionary[str, Disk] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _forget() -> None:
    """In a child: its parent's threads are not here to end what they were doing."""
    global _open, _opening
    _open, _opening = weakref.WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_forget)
