"""Stores: a narrow interface over local files and every URL that fsspec knows."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from shardstream.errors import CommitError, OptionError, StorageError

Options = Mapping[str, Any] | None
Data = bytes | bytearray | memoryview

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")  # chained ones, too: simplecache::s3://
_EXTRAS = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs",
    "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure",
}  # fmt: skip
_TEMPORARY = ".tmp-"


def redact(url: str) -> str:
    """`url` without user, password, query and fragment, for messages and logs; valid Unicode."""
    url = url.encode("utf-8", "backslashreplace").decode()
    scheme, mark, rest = url.partition("://")
    if not mark or not _REMOTE.match(url):
        return url
    # A password may hold what should be escaped, "/" or "?": then it seems to be the port.
    host, _, port = rest.partition("/")[0].rpartition(":")
    if host and not port.isdigit():
        rest = rest.rpartition("@")[2]
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


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


def filesystem(url: str, options: Options) -> tuple[Any, str]:
    """(fsspec file system, path) of a URL."""
    import fsspec

    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else "file"
    if scheme == "pipe":
        raise OptionError("pipe: URLs run commands and are refused")
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **dict(options or {})))
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install 'shardstream[{extra}]'" if extra else str(error)
        raise OptionError(f"{redact(url)}: {scheme}:// needs another package: {hint}") from error
    except ValueError as error:
        raise OptionError(f"{redact(url)}: no store for {scheme}://") from error
    except Exception as error:  # credentials, endpoints: every SDK has its own errors
        raise StorageError(f"{redact(url)}: cannot open the store: {type(error).__name__}") from error


def local_path_of(url: str) -> str | None:
    """The local path of a URL, or None for a remote one."""
    if url.startswith("file://"):
        return os.path.abspath(url[7:])
    return None if _SCHEME.match(url) else os.path.abspath(os.path.expanduser(url))


def absolute(url: str) -> str:
    """`url` as it can be used from anywhere: a local path made absolute."""
    return local_path_of(url) or url


def is_private(url: str) -> bool:
    """Whether what lies at `url` is seen by this process alone, as with memory://."""
    return url.startswith("memory://")


class Store:
    """The objects below one root. Paths are relative and use `/`. Errors are StorageError."""

    url: str

    @staticmethod
    def open(url: str, storage_options: Options = None) -> Store:
        """The store of a directory, local or remote."""
        local = local_path_of(str(url))
        return LocalStore(local) if local is not None else FsspecStore(str(url), storage_options)

    def read(self, path: str) -> bytes:
        """The whole object."""
        raise NotImplementedError

    def read_range(self, path: str, start: int, size: int) -> bytes:
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

    def write(self, path: str, *parts: Data) -> None:
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

    def where(self, path: str) -> str:
        """`path` with its root, for messages."""
        return f"{self.url.rstrip('/')}/{path}"


class LocalStore(Store):
    """A directory on this machine."""

    def __init__(self, root: str) -> None:
        self.url = root
        self._root = Path(root)

    def local_path(self, path: str) -> str:
        return str(self._root / path)

    def read(self, path: str) -> bytes:
        with named(self.where(path)):
            return (self._root / path).read_bytes()

    def read_range(self, path: str, start: int, size: int) -> bytes:
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

    def write(self, path: str, *parts: Data) -> None:
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
    def _temporary(self, path: str, *parts: Data) -> Iterator[str]:
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


class FsspecStore(Store):
    """A directory of any store that fsspec reaches."""

    def __init__(self, url: str, options: Options) -> None:
        self.url = redact(url)
        self._fs, root = filesystem(url, options)
        self._root = root.rstrip("/")

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"

    def read(self, path: str) -> bytes:
        with named(self.where(path)):
            return bytes(self._fs.cat_file(self._path(path)))

    def read_range(self, path: str, start: int, size: int) -> bytes:
        if not size:
            return b""
        with named(self.where(path)):
            data = bytes(self._fs.cat_file(self._path(path), start=start, end=start + size))
        if len(data) != size:
            raise StorageError(f"{self.where(path)}: {len(data)} bytes came back, {size} were asked for")
        return data

    def size(self, path: str) -> int:
        with named(self.where(path)):
            return int(self._fs.info(self._path(path))["size"])

    def exists(self, path: str) -> bool:
        with named(self.where(path)):
            return bool(self._fs.exists(self._path(path)))

    def list(self) -> list[str]:
        with named(self.url):
            try:
                self._fs.invalidate_cache()
                names = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in names)

    def write(self, path: str, *parts: Data) -> None:
        with named(f"writing {self.where(path)}"):
            self._fs.pipe_file(self._path(path), b"".join(parts))

    def create(self, path: str, data: bytes) -> None:
        with named(f"writing {self.where(path)}"):
            try:
                self._fs.pipe_file(self._path(path), data, mode="create")
            except (FileExistsError, TypeError) as error:
                # A store without put-if-absent takes no mode; then a look first must do.
                if isinstance(error, FileExistsError) or self._fs.exists(self._path(path)):
                    raise CommitError(f"{self.where(path)} exists already") from error
                self._fs.pipe_file(self._path(path), data)

    def delete(self, path: str) -> None:
        with named(f"deleting {self.where(path)}"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(path))


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
