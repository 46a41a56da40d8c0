"""Stores: a narrow interface over local files and every URL that fsspec knows."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from shardstream.errors import CommitError, StorageError
from shardstream.storage.local.reads import read_exactly, read_parts, version_of
from shardstream.storage.local.writes import flat, sync_folder, write_parts
from shardstream.storage.named import named
from shardstream.storage.options import Options, split_options
from shardstream.storage.secrets import redact
from shardstream.storage.spans import Part, extent, fill, spans
from shardstream.storage.transport.backends import Data, Entry
from shardstream.storage.transport.backends.fsspec import SCHEME
from shardstream.storage.transport.client import Client
from shardstream.storage.transport.session import ReadSession

__all__ = [
    "Entry", "LocalStore", "Options", "ReadSession", "RemoteStore", "Store", "absolute", "is_private",
    "local_path_of", "named", "redact", "sync_folder",
]  # fmt: skip

_TEMPORARY = ".tmp-"
_THREADS = 64


def local_path_of(url: str) -> str | None:
    """The local path of a URL, or None for a remote one."""
    if url.startswith("file://"):
        path = url[7:]
        return os.path.abspath(unquote(path[9:] if path.startswith("localhost/") else path))
    return None if SCHEME.match(url) else os.path.abspath(os.path.expanduser(url))


def absolute(url: str) -> str:
    """`url`, or the absolute path if it is local: good in any working directory."""
    return local_path_of(url) or url


def is_private(url: str) -> bool:
    """Whether only this process can read `url`, as with memory://."""
    return url.startswith("memory://")


class Store:
    """The objects below one root. Paths are relative and use `/`. Errors are StorageError."""

    url: str
    session: ReadSession  # what its requests have in common: versions of objects, counts

    @staticmethod
    def open(url: str, storage_options: Options = None) -> Store:
        """The store of a directory, local or remote."""
        local = local_path_of(str(url))
        if local is not None:
            split_options(storage_options)  # bad options are refused, although a directory needs none
        return LocalStore(local) if local is not None else RemoteStore(str(url), storage_options)

    def read(self, path: str, most: int | None = None) -> bytes:
        """The whole object, which must have at most `most` bytes."""
        raise NotImplementedError

    def warm_up(self, path: str, connections: int) -> None:
        """Begin to open so many connections, since `path` will be read; returns at once, raises nothing."""

    def read_range(self, path: str, start: int, size: int) -> Data:
        """Exactly `size` bytes from `start`."""
        raise NotImplementedError

    def read_start(self, path: str, most: int) -> tuple[Data, int]:
        """(the first `most` bytes of an object, fewer if it is shorter; its size)."""
        size = self.size(path)
        return self.read_range(path, 0, min(most, size)), size

    def sends_whole(self, path: str) -> bool:
        """Whether the server ignores ranges: it has sent this object whole when a part was asked for."""
        return False

    def read_into(self, path: str, parts: Sequence[Part]) -> None:
        """Fill memory with parts of one object, in this thread; `read_ranges` does it with many.

        Args:
            path: The object.
            parts: (start, view) pairs: where the bytes begin, and a writable, contiguous view of single bytes
                that is filled. They may lie in any order, overlap, or be empty.

        Raises:
            StorageError: A part lies outside of the object, it has changed since this store has read it, or
                it cannot be read. The views then hold anything.
        """
        for span in spans(parts):
            start, end = extent(span)
            fill(span, start, self.read_range(path, start, end - start))

    def size(self, path: str) -> int:
        """The object's size in bytes."""
        raise NotImplementedError

    def version(self, path: str) -> tuple[str, int]:
        """(what names the object's version, or "" if the store does not tell; its size in bytes)."""
        return "", self.size(path)

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        raise NotImplementedError

    def list(self, folder: str = "") -> list[str]:
        """The names of the objects directly below the root, or below a folder of it, sorted."""
        raise NotImplementedError

    def write(self, path: str, *parts: Data | bytearray) -> None:
        """Put an object of these parts, atomically: readers see the old one or the new one.

        The parts are not joined where the store's package can do without. No thread may change them before
        this method returns. Up to 256 MiB are one request to a store, which is tried again as a whole.
        """
        raise NotImplementedError

    def create(self, path: str, *parts: Data | bytearray) -> str:
        """Put an object that must not exist yet, else CommitError.

        Returns:
            What names its version, as `version` does; "" if the store does not tell.
        """
        raise NotImplementedError

    def replace(self, path: str, data: bytes, version: str) -> str:
        """Put an object in the place of one that must still have this version, else CommitError.

        A store that does not tell versions puts it in any case. So does a directory if another process puts
        it at the same time.

        Returns:
            What names its new version.
        """
        raise NotImplementedError

    def delete(self, path: str) -> None:
        """Delete an object; one that is missing is no error."""
        raise NotImplementedError

    def delete_many(self, paths: Sequence[str]) -> None:
        """Delete objects, many by one request where the store can; those that are missing are no error."""
        for path in paths:
            self.delete(path)

    def entries(self) -> list[Entry]:
        """The objects directly below the root, by name, with their sizes and versions: of one listing."""
        found = []
        for name in self.list():
            version, size = self.version(name)
            found.append(Entry(name, size, version))
        return found

    def clear_temporary(self, folder: str = "") -> None:
        """Delete the temporary files of writers that were killed, in the root or a folder; none is alive."""

    def local_path(self, path: str) -> str | None:
        """Where the object lies on this machine, or None."""
        return None

    @property
    def conditional(self) -> bool:
        """Whether `create` is one step: of many that create an object only one succeeds."""
        return True

    @property
    def concurrency(self) -> int:
        """How many requests at a time are worth it."""
        return _THREADS

    @property
    def backend(self) -> str:
        """The name of the backend: "local", or such as "obstore-s3" or "fsspec-http"."""
        return "local"

    def where(self, path: str) -> str:
        """`path` with its root, for messages."""
        return f"{self.url.rstrip('/')}/{path}" if path else self.url


class LocalStore(Store):
    """A directory on this machine."""

    def __init__(self, root: str) -> None:
        self.url, self.session = root, ReadSession()
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
            return read_exactly(file.fileno(), start, size, self.where(path))

    def read_into(self, path: str, parts: Sequence[Part]) -> None:
        where = self.where(path)
        with named(where):
            file = os.open(self._root / path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.session.check(where, *version_of(os.fstat(file)))
                read_parts(file, parts, where)
                self.session.check(
                    where, *version_of(os.fstat(file))
                )  # it may have been written to meanwhile
            finally:
                os.close(file)

    def size(self, path: str) -> int:
        with named(self.where(path)):
            return (self._root / path).stat().st_size

    def version(self, path: str) -> tuple[str, int]:
        with named(self.where(path)):
            return version_of((self._root / path).stat())

    def exists(self, path: str) -> bool:
        with named(self.where(path)):
            return (self._root / path).exists()

    def list(self, folder: str = "") -> list[str]:
        with named(self.where(folder)):
            root = self._root / folder
            if not root.is_dir():
                return []
            return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith(_TEMPORARY))

    def entries(self) -> list[Entry]:
        with named(self.url):
            if not self._root.is_dir():
                return []
            found = []
            with os.scandir(self._root) as listed:
                for each in listed:
                    if each.name.startswith(_TEMPORARY):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile; or a broken link
                        if not each.is_dir():
                            version, size = version_of(each.stat())
                            found.append(Entry(each.name, size, version))
            return sorted(found)

    def write(self, path: str, *parts: Data | bytearray) -> None:
        self.session.forget(self.where(path))
        with self._temporary(path, *parts) as temporary:
            os.replace(temporary, self._root / path)

    def create(self, path: str, *parts: Data | bytearray) -> str:
        with self._temporary(path, *parts) as temporary:
            try:
                os.link(temporary, self._root / path)  # fails if there is such a name
            except FileExistsError as error:
                raise CommitError(f"{self.where(path)} exists already") from error
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                # A file system without hard links: the best that can be done is to look first.
                if os.path.exists(self._root / path):
                    raise CommitError(f"{self.where(path)} exists already") from error
                os.replace(temporary, self._root / path)
            return version_of(os.stat(self._root / path))[0]

    def replace(self, path: str, data: bytes, version: str) -> str:
        if self.version(path)[0] != version:
            raise CommitError(f"{self.where(path)} was changed meanwhile")
        self.write(path, data)
        return self.version(path)[0]

    @contextlib.contextmanager
    def _temporary(self, path: str, *parts: Data | bytearray) -> Iterator[str]:
        with named(f"writing {self.where(path)}"):
            folder = (self._root / path).parent
            if folder != self._root and not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(str(folder.parent))  # a new folder must outlive a crash, too
            folder.mkdir(parents=True, exist_ok=True)
            temporary = str(folder / f"{_TEMPORARY}{os.urandom(8).hex()}")
            try:
                with open(temporary, "xb", buffering=0) as file:
                    write_parts(file.fileno(), parts)
                    os.fsync(file.fileno())
                yield temporary
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
            sync_folder(str(folder))

    def delete(self, path: str) -> None:
        with named(f"deleting {self.where(path)}"), contextlib.suppress(FileNotFoundError):
            (self._root / path).unlink()

    def clear_temporary(self, folder: str = "") -> None:
        with named(f"cleaning {self.where(folder)}"):
            for file in (self._root / folder).glob(f"{_TEMPORARY}*"):
                file.unlink(missing_ok=True)


class RemoteStore(Store):
    """A directory of a remote store. Requests are tried again, and answers are checked."""

    def __init__(self, url: str, options: Options) -> None:
        self.url = redact(url)
        self._client = Client(url, options)
        self.session = self._client.session

    def read(self, path: str, most: int | None = None) -> bytes:
        return self._client.get(path, most)

    def warm_up(self, path: str, connections: int) -> None:
        self._client.warm_up(path, connections)

    def read_range(self, path: str, start: int, size: int) -> Data:
        data = self._client.get_range(path, start, size)
        if len(data) != size:
            raise StorageError(f"{self.where(path)}: {len(data)} bytes came back, {size} were asked for")
        return data

    def size(self, path: str) -> int:
        return self._client.size(path)

    def read_start(self, path: str, most: int) -> tuple[Data, int]:
        data = self._client.get_range(path, 0, most)
        known = self.session.total(self._client.where(path))
        return data, len(data) if len(data) < most else known or self.size(path)

    def sends_whole(self, path: str) -> bool:
        return self.session.came_whole(self._client.where(path))

    def version(self, path: str) -> tuple[str, int]:
        return self._client.version(path)

    def exists(self, path: str) -> bool:
        return self._client.exists(path)

    def list(self, folder: str = "") -> list[str]:
        return self._client.list(folder)

    def write(self, path: str, *parts: Data | bytearray) -> None:
        self._client.put(path, flat(parts))

    def create(self, path: str, *parts: Data | bytearray) -> str:
        return self._client.create(path, flat(parts))

    def replace(self, path: str, data: bytes, version: str) -> str:
        return self._client.replace(path, data, version)

    def delete(self, path: str) -> None:
        self._client.delete(path)

    def delete_many(self, paths: Sequence[str]) -> None:
        self._client.delete_many(paths)

    def entries(self) -> list[Entry]:
        return self._client.entries()

    @property
    def conditional(self) -> bool:
        return self._client.conditional

    @property
    def concurrency(self) -> int:
        return self._client.concurrency

    @property
    def backend(self) -> str:
        return self._client.backend
