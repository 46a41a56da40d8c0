"""Block files: where the blocks of the SSD tier lie, and what is trusted of what lies there.

DIR/shardstream-1-UID/
    blocks/GROUP/NAME    a block, then 8 bytes: the xxh3_64 of it, seeded by its group and name
    ledgers/PROCESS      what each process has added and removed
    partial/PROCESS-N    a block that is being written
    claims               byte-range locks: who fetches which block

A block is a file, so that presence is a name, publishing is a link and eviction is an unlink: a
reader keeps what it has opened, and no kill leaves half a block behind a name. Nothing read is
trusted without its checksum. Only files of the right owner, kind and name are read or deleted.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import stat
import struct
import weakref
from collections.abc import Callable, Collection, Iterator

from shardstream.storage.blocks import Block, seal
from shardstream.storage.stores import Data

__all__ = ["SEAL", "BlockFiles", "cost", "is_sound", "names_in"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_CLAIMS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = re.compile(r"(?:\d+(?:\.raw)?|index|whole)\Z")
_GROUP = re.compile(r"[0-9a-f]{32}\Z")
SEAL = struct.Struct("<Q")
_UNIT = 4096  # what file systems allocate


def cost(size: int) -> int:
    """The bytes of disk that a block takes; a file that was cut to nothing counts as one unit."""
    return max(1, -(-(size + SEAL.size) // _UNIT)) * _UNIT


def is_sound(block: Block, stored: memoryview) -> bool:
    """Whether a block's file, as `BlockFiles.read` gives it, holds that block."""
    size = block.size
    return len(stored) == size + SEAL.size and SEAL.unpack(stored[size:])[0] == seal(block, stored[:size])


def names_in(folder: int) -> list[str]:
    """The names in an open folder; for many threads, and processes that have it from their parent.

    It is opened anew: what shares a descriptor shares a place in the listing, and would miss names.
    """
    own = os.open(".", _FOLDER, dir_fd=folder)
    try:
        return os.listdir(own)
    finally:
        os.close(own)


class BlockFiles:
    """The files at `path`, the last part of which is made. Raises OSError if it is not ours alone.

    ledgers: the open folder of that name.
    """

    def __init__(self, path: str) -> None:
        self._descriptors: list[int] = []
        # Not at exit: a thread may still be writing then.
        weakref.finalize(self, _close, self._descriptors).atexit = False
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        self._root = self._keep_open(os.open(path, _FOLDER))
        found = os.fstat(self._root)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "it belongs to somebody else, or others have access to it")
        self._blocks, self.ledgers, self._partial = map(self._subfolder, ("blocks", "ledgers", "partial"))

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

    def open_claims(self) -> int:
        """A descriptor of the file for claims, which the caller closes."""
        return os.open("claims", _CLAIMS, 0o600, dir_fd=self._root)

    def free(self) -> int:
        """The bytes that the file system has left."""
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize

    def drop_partial(self, living: Collection[str]) -> None:
        """Delete what processes were writing that are not among the living."""
        for name in names_in(self._partial):
            if name.partition("-")[0] not in living:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._partial)

    def has(self, block: Block) -> bool:
        """Whether the block is there, by its name and size."""
        with contextlib.suppress(OSError):
            found = os.stat(f"{block.group}/{block.name}", dir_fd=self._blocks, follow_symlinks=False)
            return stat.S_ISREG(found.st_mode) and found.st_size == block.size + SEAL.size
        return False

    def read(self, block: Block, mapped: bool = False) -> memoryview:
        """What lies at a block's place, for `is_sound`; PermissionError if the cache did not make it."""
        with self._group(block.group) as group:
            file = os.open(block.name, _FILE, dir_fd=group)
            try:
                found = os.fstat(file)
                if not _is_ours(found):
                    raise PermissionError(errno.EPERM, "a file of somebody else")
                if mapped and found.st_size:
                    return memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
                with open(file, "rb", buffering=0, closefd=False) as raw:
                    return memoryview(raw.read(found.st_size))
            finally:
                os.close(file)

    def write(self, block: Block, data: Data, partial: str) -> bool:
        """Write a block, under the name `partial` until it is complete; False if it is there already."""
        try:
            with open(os.open(partial, _NEW, 0o600, dir_fd=self._partial), "wb") as file:
                file.writelines((data, SEAL.pack(seal(block, data))))
            return self._publish(partial, block)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=self._partial)

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

    def delete(self, group: str, name: str) -> bool:
        """Delete a block, and its folder with the last one in it; whether it was there."""
        deleted = False
        with self._group(group) as folder, contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
            deleted = True
        with contextlib.suppress(OSError):
            os.rmdir(group, dir_fd=self._blocks)
        return deleted

    def all(self, foreign: Callable[[str], None] | None = None) -> Iterator[tuple[str, str, int]]:
        """(group, name, size) of all blocks that the cache made; `foreign` is told of other files."""
        for group in names_in(self._blocks):
            try:
                with self._group(group) as folder, os.scandir(folder) as entries:
                    if not _GROUP.match(group):
                        raise NotADirectoryError
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            found = entry.stat(follow_symlinks=False)
                            if _NAME.match(entry.name) and _is_ours(found):
                                yield group, entry.name, found.st_size - SEAL.size
                            elif foreign is not None:
                                foreign(f"{group}/{entry.name}")
            except FileNotFoundError:
                pass
            except OSError:
                if foreign is not None:
                    foreign(group)

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


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
