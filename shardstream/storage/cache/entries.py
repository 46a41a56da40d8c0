"""Entries of the SSD tier: the files of blocks and manifests, and which files may be trusted.

DIR/shardstream-1-UID/
    blocks/GROUP/NAME    a block, then 8 bytes: its xxh3_64, seeded by its group and name
    ledgers/PROCESS      the bytes that each process has added, less the bytes that it removed
    partial/PROCESS-N    a block that is being written
    manifests/...        see `shardstream.storage.cache.manifests`
    claims               byte-range locks: which blocks are being fetched

A block is a file: it is there if its name is there, it is published by a link, and it is evicted by an
unlink. A reader can go on with a file that it has opened, and after a kill no name leads to half a block. The
bytes of a file are trusted only if their checksum is right. A file is read or deleted only if its owner, kind
and name are right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import struct
from collections.abc import Callable, Collection, Iterator

from shardstream.memory import when_dropped
from shardstream.storage.cache.blocks import Block, seal
from shardstream.storage.local.maps import map_descriptor
from shardstream.storage.local.reads import read_at
from shardstream.storage.transport.backends import Data

__all__ = ["SEAL", "Entries", "cost", "is_ours", "is_sound", "names_in", "unit"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LOCKS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = re.compile(r"(?:\d+(?:\.raw)?|index|columns|whole)\Z")
_GROUP = re.compile(r"[0-9a-f]{32}\Z")
SEAL = struct.Struct("<Q")
_MAPPED = 64 << 10  # bytes; a file of this size or more is mapped at no more cost than it is read
_UNIT = 4096  # bytes that file systems allocate at a time


def cost(size: int) -> int:
    """The bytes of disk that the file of a block takes."""
    return unit(size + SEAL.size)


def unit(size: int) -> int:
    """The bytes of disk that a file takes; an empty file counts as one unit."""
    return max(1, -(-size // _UNIT)) * _UNIT


def is_sound(block: Block, stored: memoryview) -> bool:
    """Whether these bytes, from `Entries.read`, are this block and its checksum."""
    size = block.size
    return len(stored) == size + SEAL.size and SEAL.unpack(stored[size:])[0] == seal(block, stored[:size])


def names_in(folder: int) -> list[str]:
    """The names in an open folder; for many threads, and for processes that inherit it.

    The folder is opened anew: threads that share a descriptor share a place in the listing, and would miss
    names.
    """
    own = os.open(".", _FOLDER, dir_fd=folder)
    try:
        return os.listdir(own)
    finally:
        os.close(own)


class Entries:
    """The files of a cache.

    Args:
        path: Where they are. The last folder of it is made if it is missing.

    Attributes:
        usage_folder: The open folder of the counts of bytes.
        manifest_folder: The open folder of the manifests.

    Raises:
        OSError: The folder cannot be used, or it does not belong to this user alone.
    """

    def __init__(self, path: str) -> None:
        self._descriptors: list[int] = []
        when_dropped(self, _close, self._descriptors)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        self._root = self._keep_open(os.open(path, _FOLDER))
        found = os.fstat(self._root)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "it belongs to somebody else, or others have access to it")
        self._blocks, self.usage_folder, self._partial, self.manifest_folder = map(
            self._subfolder, ("blocks", "ledgers", "partial", "manifests")
        )

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

    def open_lock_file(self) -> int:
        """A descriptor of the file for fetch locks, which the caller closes."""
        return os.open("claims", _LOCKS, 0o600, dir_fd=self._root)

    def free(self) -> int:
        """The free bytes of the file system."""
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize

    def overhead(self) -> int:
        """The bytes of disk that the folders take; the folder of a group counts as one unit."""
        found = [os.fstat(descriptor) for descriptor in self._descriptors]
        groups = os.fstat(self._blocks).st_nlink - 2
        if groups < 0:  # a file system that does not count folders by their links
            groups = len(names_in(self._blocks))
        return sum(each.st_blocks * 512 for each in found) + groups * _UNIT

    def drop_partial(self, living: Collection[str]) -> None:
        """Delete the unfinished files of processes that are not among the living."""
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
        """The file of a block, for `is_sound`; PermissionError if the cache did not make it."""
        with self._group(block.group) as group:
            file = os.open(block.name, _FILE, dir_fd=group)
            try:
                found = os.fstat(file)
                if not is_ours(found):
                    raise PermissionError(errno.EPERM, "a file of somebody else")
                if mapped and found.st_size >= _MAPPED:
                    with contextlib.suppress(OSError):  # if there are too many maps, it is read
                        return map_descriptor(file, found.st_size)
                return memoryview(read_at(file, 0, found.st_size))
            finally:
                os.close(file)

    def write(self, block: Block, data: Data, partial: str) -> bool:
        """Write a block, under the name `partial` until it is complete; False if it is there already."""
        with self._written(partial, data, SEAL.pack(seal(block, data))):
            for _ in range(4):  # with its last block, the folder of the group may be deleted meanwhile
                with contextlib.suppress(FileExistsError):
                    os.mkdir(block.group, 0o700, dir_fd=self._blocks)
                with contextlib.suppress(FileNotFoundError), self._group(block.group) as group:
                    return self._publish(partial, block.name, group)
            raise FileNotFoundError(errno.ENOENT, "the directory is gone")

    def write_manifest(self, name: str, data: Data, partial: str) -> bool:
        """Write a manifest in the same way."""
        with self._written(partial, data):
            return self._publish(partial, name, self.manifest_folder)

    @contextlib.contextmanager
    def _written(self, partial: str, *parts: Data) -> Iterator[None]:
        try:
            with open(os.open(partial, _NEW, 0o600, dir_fd=self._partial), "wb") as file:
                file.writelines(parts)
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=self._partial)

    def _publish(self, partial: str, name: str, folder: int) -> bool:
        """Give a complete file its name in an open folder; False if the name is there already."""
        try:
            os.link(partial, name, src_dir_fd=self._partial, dst_dir_fd=folder)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            os.rename(partial, name, src_dir_fd=self._partial, dst_dir_fd=folder)
        return True

    def delete(self, group: str, name: str) -> bool:
        """Delete a block, and with the last one of a group its folder; whether the block was there."""
        deleted = False
        with self._group(group) as folder, contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
            deleted = True
        with contextlib.suppress(OSError):
            os.rmdir(group, dir_fd=self._blocks)
        return deleted

    def all(self, foreign: Callable[[str], None] | None = None) -> Iterator[tuple[str, str, int]]:
        """(group, name, size) of all blocks that the cache made; `foreign` gets the names of others."""
        for group in names_in(self._blocks):
            try:
                with self._group(group) as folder, os.scandir(folder) as entries:
                    if not _GROUP.match(group):
                        raise NotADirectoryError
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            found = entry.stat(follow_symlinks=False)
                            if _NAME.match(entry.name) and is_ours(found):
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


def is_ours(found: os.stat_result) -> bool:
    """Whether the cache may have made such a file."""
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
