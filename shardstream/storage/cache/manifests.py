"""Manifests in the cache: the datasets as their stores gave them last, for the time when a store does not
answer.

DIR/shardstream-1-UID/manifests/URL-FINGERPRINT: URL is a hash of the dataset's place without credentials. The
time of the file is the time when the store gave it last. A manifest is trusted only if its fingerprint is
right, which covers all of it. One of very many shards is there as its stub with its body behind it, as the
store has them, and is trusted if the checksum in the stub is right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import xxhash

from shardstream.errors import CorruptionError
from shardstream.format.manifest import Manifest
from shardstream.format.manifest_files import load
from shardstream.storage.cache.entries import Entries, is_ours, names_in, unit
from shardstream.storage.local.reads import read_at
from shardstream.storage.secrets import redact

__all__ = ["Manifests"]

_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{64})\Z")
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OF_ONE = 4  # manifests of one dataset
_SHARE = 4  # one part in so many of the limit is for manifests


class _Stored(NamedTuple):
    seen: int  # when the store gave it last, in nanoseconds
    name: str
    size: int


class Manifests:
    """The manifests in a cache.

    Args:
        entries: The files.
        count: It is called with the bytes that are about to be added, or with a negative number when they
            were deleted.
    """

    def __init__(self, entries: Entries, count: Callable[[int], None]) -> None:
        self._entries, self._count = entries, count

    def get(self, url: str, fingerprint: str) -> Manifest | None:
        """A manifest of the dataset at `url`; None if it is not there, or was damaged and is now deleted."""
        name = _name(url, fingerprint)
        if not _NAME.match(name):
            return None
        try:
            found = load(self._read(name))
        except CorruptionError:
            found = None
        except OSError:
            return None
        if found is None or found.fingerprint != fingerprint:
            self._delete(name)
            return None
        return found

    def seen(self, url: str, fingerprint: str) -> None:
        """Take down that the store of the dataset has this manifest just now."""
        with contextlib.suppress(OSError):
            os.utime(_name(url, fingerprint), dir_fd=self._entries.manifest_folder, follow_symlinks=False)

    def newest(self, url: str) -> Manifest | None:
        """The manifest that the store of the dataset at `url` gave last."""
        for stored in sorted(self._all(_name(url, "")), reverse=True):
            found = self.get(url, stored.name.rpartition("-")[2])
            if found is not None:
                return found
        return None

    def put(self, url: str, fingerprint: str, data: bytes, partial: str, room: Callable[[int], bool]) -> None:
        """Store a manifest that the store of the dataset gave just now.

        Args:
            url: Where the dataset lies.
            fingerprint: Of the manifest.
            data: The manifest.
            partial: The name of the file until it is complete.
            room: Makes room in the cache for its bytes, which are counted already; whether there is room.
        """
        name, price, stored = _name(url, fingerprint), unit(len(data)), False
        with contextlib.suppress(OSError):
            if self._read(name) == data:
                os.utime(name, dir_fd=self._entries.manifest_folder, follow_symlinks=False)
                return
            self._delete(name)
        self._count(price)
        try:
            if room(price):
                stored = self._entries.write_manifest(name, data, partial)
        finally:
            if not stored:
                self._count(-price)

    def shrink(self, limit: int) -> None:
        """Delete all but the newest few of each dataset; then the oldest, if all together take too much."""
        of_one: dict[str, int] = {}
        total = 0
        for stored in sorted(self._all(), reverse=True):
            key = stored.name.partition("-")[0]
            of_one[key] = of_one.get(key, 0) + 1
            total += unit(stored.size)
            if of_one[key] > _OF_ONE or (total > limit // _SHARE and total > unit(stored.size)):
                total -= unit(stored.size)
                self._delete(stored.name)

    def used(self) -> int:
        """The bytes of disk that they take."""
        return sum(unit(stored.size) for stored in self._all())

    def __len__(self) -> int:
        return sum(1 for _ in self._all())

    def damaged(self) -> list[str]:
        """The names of the manifests that are damaged."""
        found = []
        for _, name, _ in self._all():
            try:
                sound = load(self._read(name)).fingerprint == name.rpartition("-")[2]
            except (OSError, CorruptionError):
                sound = False
            if not sound:
                found.append(f"manifests/{name}")
        return found

    def clear(self) -> int:
        """Delete all; returns their bytes of disk."""
        return sum(unit(stored.size) for stored in list(self._all()) if self._delete(stored.name))

    def _all(self, prefix: str = "") -> Iterator[_Stored]:
        """The files that the cache made."""
        for name in names_in(self._entries.manifest_folder):
            if name.startswith(prefix) and _NAME.match(name):
                with contextlib.suppress(OSError):
                    found = os.stat(name, dir_fd=self._entries.manifest_folder, follow_symlinks=False)
                    if is_ours(found):
                        yield _Stored(found.st_mtime_ns, name, found.st_size)

    def _read(self, name: str) -> bytes:
        file = os.open(name, _FILE, dir_fd=self._entries.manifest_folder)
        try:
            found = os.fstat(file)
            if not is_ours(found):
                raise PermissionError(errno.EPERM, "a file of somebody else")
            return bytes(read_at(file, 0, found.st_size))
        finally:
            os.close(file)

    def _delete(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            found = os.stat(name, dir_fd=self._entries.manifest_folder, follow_symlinks=False)
            if is_ours(found):
                os.unlink(name, dir_fd=self._entries.manifest_folder)
                self._count(-unit(found.st_size))
                return True
        return False


def _name(url: str, fingerprint: str) -> str:
    return f"{xxhash.xxh3_128_hexdigest(redact(url).rstrip('/').encode())}-{fingerprint}"
