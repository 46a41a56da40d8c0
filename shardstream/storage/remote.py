"""Stores: a narrow interface over local files and every URL that fsspec knows."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardstream.errors import CommitError, OptionError, StorageError
from shardstream.storage.calls import Remote, Scope
from shardstream.storage.secrets import redact
from shardstream.storage.stores import Data, Options
from shardstream.storage.stores.fsspec import SCHEME

__all__ = [
    "LocalStore", "Options", "RemoteStore", "Scope", "Store", "absolute", "is_private", "local_path_of",
    "named", "redact", "sync_folder",
]  # fmt: skip

_TEMPORARY = ".tmp-"
_THREADS = 64


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Turn the errors of file systems into StorageError that says what was tried."""
    try:
        yield
    except (StorageError, OptionError):
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(f"{what}: {reason}") from error
    except Exception as error:  # stores raise what they like; none of it may pass untyped
        raise StorageError(f"{what}: {type(error).__name__}") from error


def local_path_of(url: str) -> str | None:
    """The local path of a URL, or None for a remote one."""
    if url.startswith("file://"):
        return os.path.abspath(url[7:])
    return None if SCHEME.match(url) else os.path.abspath(os.path.expanduser(url))


def absolute(url: str) -> str:
    """`url` as it can be used from anywhere: a local path made absolute."""
    return local_path_of(url) or url


def is_private(url: str) -> bool:
    """Whether what lies at `url` is seen by this process alone, as with memory://."""
    return url.startswith("memory://")


class Store:
    """The objects below one root. Paths are relative and use `/`. Errors are StorageError."""

    url: str
    scope: Scope  # what its readers share: versions of objects, counts

    @staticmethod
    def open(url: str, storage_options: Options = None) -> Store:
        """The store of a directory, local or remote."""
        local = local_path_of(str(url))
        return LocalStore(local) if local is not None else RemoteStore(str(url), storage_options)

    def read(self, path: str, most: int | None = None) -> bytes:
        """The whole object, which must have at most `most` bytes."""
        raise NotImplementedError

    def warm_up(self, path: str, connections: int) -> None:
        """Have so many connections open by the time `path` is read; returns at once, raises nothing."""

    def read_range(self, path: str, start: int, size: int) -> Data:
        """Exactly `size` bytes from `start`."""
        raise NotImplementedError

    def size(self, path: str) -> int:
        """The object's size in bytes."""
        raise NotImplementedError

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        raise NotImplementedError

    def list(self) -> list[str]:
        """The names of the objects directly below the root, sorted."""
        raise NotImplementedError

    def write(self, path: str, *parts: Data | bytearray) -> None:
        """Put an object of these parts, atomically: readers see the old one or the new one."""
        raise NotImplementedError

    def create(self, path: str, data: bytes) -> None:
        """Put an object that must not exist yet, else CommitError."""
        raise NotImplementedError

    def delete(self, path: str) -> None:
        """Delete an object; one that is missing is no error."""
        raise NotImplementedError

    def clear_temporary(self) -> None:
        """Delete what writers that were killed left behind; only while no writer can be alive."""

    def local_path(self, path: str) -> str | None:
        """Where the object lies on this machine, or None."""
        return None

    @property
    def concurrency(self) -> int:
        """How many requests it is worth having in flight."""
        return _THREADS

    @property
    def backend(self) -> str:
        """What talks to the store."""
        return "local"

    def where(self, path: str) -> str:
        """`path` with its root, for messages."""
        return f"{self.url.rstrip('/')}/{path}"


class LocalStore(Store):
    """A directory on this machine."""

    def __init__(self, root: str) -> None:
        self.url, self.scope = root, Scope()
        self._root = Path(root)

    def local_path(self, path: str) -> str:
        return str(self._root / path)

    def read(self, path: str, most: int | None = None) -> bytes:
        with named(self.where(path)):
            if most is not None and (size := (self._root / path).stat().st_size) > most:
                raise StorageError(f"{self.where(path)}: {size} bytes are too many, {most} are allowed")
            return (self._root / path).read_bytes()

    def read_range(self, path: str, start: int, size: int) -> Data:
        with named(self.where(path)), (self._root / path).open("rb", buffering=0) as file:
            return _exactly(file, start, size, self.where(path))

    def size(self, path: str) -> int:
        with named(self.where(path)):
            return (self._root / path).stat().st_size

    def exists(self, path: str) -> bool:
        with named(self.where(path)):
            return (self._root / path).exists()

    def list(self) -> list[str]:
        with named(self.url):
            if not self._root.is_dir():
                return []
            return sorted(
                entry.name for entry in self._root.iterdir() if not entry.name.startswith(_TEMPORARY)
            )

    def write(self, path: str, *parts: Data | bytearray) -> None:
        with self._temporary(path, *parts) as temporary:
            os.replace(temporary, self._root / path)

    def create(self, path: str, data: bytes) -> None:
        with self._temporary(path, data) as temporary:
            try:
                os.link(temporary, self._root / path)  # fails where the name is taken
            except FileExistsError as error:
                raise CommitError(f"{self.where(path)} exists already") from error
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                # A file system without hard links: a look first must do.
                if os.path.exists(self._root / path):
                    raise CommitError(f"{self.where(path)} exists already") from error
                os.replace(temporary, self._root / path)

    @contextlib.contextmanager
    def _temporary(self, path: str, *parts: Data | bytearray) -> Iterator[str]:
        with named(f"writing {self.where(path)}"):
            folder = (self._root / path).parent
            folder.mkdir(parents=True, exist_ok=True)
            temporary = str(folder / f"{_TEMPORARY}{os.urandom(8).hex()}")
            try:
                with open(temporary, "xb") as file:
                    file.writelines(parts)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
            sync_folder(str(folder))

    def delete(self, path: str) -> None:
        with named(f"deleting {self.where(path)}"), contextlib.suppress(FileNotFoundError):
            (self._root / path).unlink()

    def clear_temporary(self) -> None:
        with named(f"cleaning {self.url}"):
            for file in self._root.glob(f"{_TEMPORARY}*"):
                file.unlink(missing_ok=True)


class RemoteStore(Store):
    """A directory of a remote store. Every request is retried, and every answer checked."""

    def __init__(self, url: str, options: Options) -> None:
        self.url = redact(url)
        self._remote = Remote(url, options)
        self.scope = self._remote.scope

    def read(self, path: str, most: int | None = None) -> bytes:
        return self._remote.get(path, most)

    def warm_up(self, path: str, connections: int) -> None:
        self._remote.warm_up(path, connections)

    def read_range(self, path: str, start: int, size: int) -> Data:
        data = self._remote.get_range(path, start, size)
        if len(data) != size:
            raise StorageError(f"{self.where(path)}: {len(data)} bytes came back, {size} were asked for")
        return data

    def size(self, path: str) -> int:
        return self._remote.size(path)

    def exists(self, path: str) -> bool:
        return self._remote.exists(path)

    def list(self) -> list[str]:
        return self._remote.list()

    def write(self, path: str, *parts: Data | bytearray) -> None:
        self._remote.put(path, b"".join(parts))

    def create(self, path: str, data: bytes) -> None:
        self._remote.create(path, data)

    def delete(self, path: str) -> None:
        self._remote.delete(path)

    @property
    def concurrency(self) -> int:
        return self._remote.concurrency

    @property
    def backend(self) -> str:
        return self._remote.backend


def sync_folder(folder: str) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exactly(file: Any, start: int, size: int, where: str) -> bytes:
    # The size may come from a damaged manifest: nothing is allocated for bytes that are not there.
    end = os.fstat(file.fileno()).st_size
    if min(start, size) < 0 or start + size > end:
        raise StorageError(f"{where}: bytes {start} to {start + size} of {end} do not exist")
    data = b""
    while len(data) < size:  # one call, but for what is beyond the kernel's limit of 2 GiB
        part = os.pread(file.fileno(), size - len(data), start + len(data))
        if not part:
            raise StorageError(f"{where}: it ends at byte {start + len(data)}, not at {start + size}")
        data = data + part if data else part
    return data
