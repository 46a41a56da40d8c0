"""Stores: a narrow interface over local files and every URL that fsspec knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import unquote

from shardstream.storage.named import named
from shardstream.storage.options import Options, split_options
from shardstream.storage.secrets import redact
from shardstream.storage.spans import Part, extent, fill, spans
from shardstream.storage.transport.backends import Data, Entry
from shardstream.storage.transport.backends.fsspec import SCHEME
from shardstream.storage.transport.session import ReadSession

__all__ = [
    "Entry", "Options", "ReadSession", "Store", "absolute", "is_private", "local_path_of", "named", "redact",
]  # fmt: skip

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
        from shardstream.storage.local_store import LocalStore
        from shardstream.storage.remote import RemoteStore

        local = local_path_of(str(url))
        if local is not None:
            split_options(storage_options)  # bad options are refused, although a directory needs none
        return LocalStore(local) if local is not None else RemoteStore(str(url), storage_options)

    def read(self, path: str, most: int | None = None) -> bytes:
        """The whole object, which must have at most `most` bytes."""
        raise NotImplementedError

    def warm_up(self, path: str, connections: int) -> None:
        """Begin to open so many connections, since `path` will be read; returns at once.

        What goes wrong with the connections is not told. It raises as a read does if there is no client.
        """

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

    def entries(self, folder: str = "") -> Sequence[Entry]:
        """The objects directly below the root, or a folder of it, by name: of one listing.

        Returns:
            Their names below that folder, sizes and versions.
        """
        found = []
        for name in self.list(folder):
            version, size = self.version(f"{folder}/{name}" if folder else name)
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
