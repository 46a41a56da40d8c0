"""The store of a directory on this machine."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shardstream.errors import CommitError, StorageError
from shardstream.storage.local.reads import read_exactly, read_parts, version_of
from shardstream.storage.local.writes import sync_folder, write_parts
from shardstream.storage.named import named
from shardstream.storage.spans import Part
from shardstream.storage.store import Store
from shardstream.storage.transport.backends import Data, Entry
from shardstream.storage.transport.session import ReadSession

__all__ = ["LocalStore"]

_TEMPORARY = ".tmp-"


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

    def entries(self, folder: str = "") -> Sequence[Entry]:
        with named(self.where(folder)):
            root = self._root / folder
            if not root.is_dir():
                return []
            found = []
            with os.scandir(root) as listed:
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
