"""Single files by URL: which files an input names, and how they are read."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from shardstream.errors import OptionError, SourceError, StorageError
from shardstream.storage.local.reads import read_at
from shardstream.storage.options import Options, split_options
from shardstream.storage.store import local_path_of, named, redact
from shardstream.storage.transport.backends import by_fsspec
from shardstream.storage.transport.client import Client, run
from shardstream.storage.transport.session import ReadSession

_BUFFER = 4 << 20  # bytes of a request for a file that is read from its beginning to its end


class FileInfo(NamedTuple):
    """An input file: its URL, its size in bytes, and the directory below which it was found ("" if named)."""

    url: str
    size: int
    root: str


MARKER = "an empty object that marks a folder"
# SQLAlchemy's own dialects, with or without a driver; and DuckDB.
_DATABASES = re.compile(r"(sqlite|duckdb|postgres(ql)?|mysql|mariadb|oracle|mssql)(\+\w+)?://", re.IGNORECASE)

Unread = list[tuple[str, str]]  # where it is, and why it cannot be read


def expand(
    urls: Sequence[str],
    storage_options: Options = None,
    unread: Unread | None = None,
    markers: Unread | None = None,
) -> list[FileInfo]:
    """The files that URLs name, in a fixed order.

    Args:
        urls: Files, directories, globs and brace lists. In a directory hidden files are passed over. URLs of
            databases stay as they are, without a size.
        storage_options: Options for their stores.
        unread: What lies in local directories and cannot be read is added here: broken links, links to
            directories, pipes, devices, and directories without access. None: that is an error.
        markers: The empty objects by which consoles of S3 mark folders are added here. They are no files.

    Raises:
        SourceError: There is nothing to read, or something cannot be read.
    """
    found: list[FileInfo] = []
    for url in urls:
        if names_database(str(url)):
            found.append(FileInfo(str(url), 0, ""))
            continue
        # A file may have this very name, such as a{1,2}.tar.
        literal = local_path_of(str(url))
        for name in [str(url)] if literal and os.path.lexists(literal) else _braces(str(url)):
            with named(redact(name)):
                below = list(_below(name, storage_options, unread, markers))
            if not below:
                raise SourceError(f"{redact(name)}: nothing there to read")
            found += below
    if not found:
        raise SourceError(f"{', '.join(map(redact, map(str, urls))) or 'no sources'}: nothing there to read")
    return found


def names_database(url: str) -> bool:
    """Whether a URL is that of a database, by its scheme."""
    return _DATABASES.match(url) is not None


def _braces(url: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", url)
    if match is None or not ("," in match[1] or ".." in match[1]):
        yield url
        return
    if url.rfind("{", 0, match.start()) > url.rfind("}", 0, match.start()):
        raise OptionError(f"{redact(url)}: braces within braces; list the names one by one")
    run = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if run:
        padded = any(len(bound) > 1 and bound.startswith("0") for bound in run.groups())
        width = max(map(len, run.groups())) if padded else 0
        first, last = int(run[1]), int(run[2])
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        parts: Iterable[str] = (str(number).zfill(width) for number in numbers)
    else:
        parts = match[1].split(",")
    for part in parts:
        yield from _braces(url[: match.start()] + part + url[match.end() :])


def _below(url: str, options: Options, unread: Unread | None, markers: Unread | None) -> Iterator[FileInfo]:
    local = local_path_of(url)
    if local is not None:
        yield from _below_local(local, unread)
        return
    ours, theirs = split_options(options)
    backend, path = by_fsspec(url, theirs, ours.timeouts)

    def ask(method: str, **more: Any) -> Any:
        return run(redact(url), lambda: backend.call(method, path, **more), ours)

    # The text before the path stays: it may name a host, or be empty, as for http.
    start, slash = url.partition("://")[0] + "://", "/"
    if path and url.rstrip("/").endswith(path):
        start, slash = url.rstrip("/")[: -len(path)], ""
    if any(letter in path for letter in "*?["):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        entries = ask("glob", detail=True)
    elif ask("isdir"):
        root, entries = path.rstrip("/"), ask("find", detail=True)
    else:
        yield FileInfo(url, Client(url, options).size(""), "")
        return
    listed = sorted(entries)
    for name, behind in zip(listed, [*listed[1:], ""], strict=True):
        empty = not entries[name].get("size")
        if empty and (name.endswith("/") or behind.startswith(f"{name}/") or name.rstrip("/") == root):
            if markers is not None:
                markers.append((redact(f"{start}{name.lstrip(slash)}"), MARKER))
            continue
        hidden = any(part.startswith(".") for part in name[len(root) :].split("/"))
        if entries[name]["type"] == "file" and not hidden:
            below = f"{start}{root.lstrip(slash)}" if root else ""
            yield FileInfo(f"{start}{name.lstrip(slash)}", int(entries[name]["size"]), below)


def _below_local(path: str, unread: Unread | None) -> Iterator[FileInfo]:
    def unreadable(where: str, why: str) -> None:
        if unread is None:
            raise SourceError(f"{redact(where)}: {why}. To leave such things out: --on-error skip")
        unread.append((redact(where), why))

    def closed(error: OSError) -> None:
        unreadable(str(error.filename), f"the directory cannot be read: {error.strerror}")

    def listed(file: str, root: str) -> Iterator[FileInfo]:
        size, problem = _size(file)
        if problem:
            unreadable(file, problem)
        else:
            yield FileInfo(file, size, root)

    if os.path.isfile(path):
        yield FileInfo(path, os.path.getsize(path), "")
    elif os.path.isdir(path):
        for folder, folders, names in os.walk(path, onerror=closed):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in folders:
                if os.path.islink(os.path.join(folder, name)):
                    where = os.path.join(folder, name)
                    unreadable(where, "a link to a directory is not followed; name the directory itself")
            for name in sorted(names):
                if not name.startswith("."):
                    yield from listed(os.path.join(folder, name), path)
    elif glob.has_magic(path):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        for name in sorted(glob.glob(path, recursive=True)):
            if not os.path.isdir(name):
                yield from listed(name, root)


def _size(path: str) -> tuple[int, str]:
    """The bytes of a file, and "" or why it is no file that can be read."""
    try:
        found = os.stat(path)
    except OSError as error:
        broken = os.path.islink(path) and isinstance(error, FileNotFoundError)
        return 0, "a broken link" if broken else f"it cannot be read: {error.strerror}"
    return found.st_size, "" if stat.S_ISREG(found.st_mode) else "a pipe, a socket or a device, and no file"


def open_input(url: str, storage_options: Options = None) -> BinaryIO:
    """A file to read a source from; it can seek if its store can."""
    local = local_path_of(url)
    with named(redact(url)):
        if local is not None:
            return open(local, "rb")
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(Client(url, storage_options)), _BUFFER))


class _RemoteFile(io.RawIOBase):
    """A remote file, read by ranges. Requests are tried again, and answers are checked."""

    def __init__(self, client: Client) -> None:
        self._client, self._at = client, 0
        self._size = client.size("")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._at))
        data = self._client.get_range("", self._at, size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_into(file: BinaryIO, view: memoryview, where: str) -> int:
    """Fill `view` from a file; returns its length, or raises StorageError if the file ends early."""
    with named(where):
        filled = 0
        while filled < len(view):
            count = file.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                raise StorageError(f"{where}: it ends before the size that was listed; did it change?")
            filled += count
    return filled


def read_slice(
    url: str, start: int, size: int, storage_options: Options = None, session: ReadSession | None = None
) -> bytes | memoryview:
    """At most `size` bytes of a file from `start`; fewer at its end. All of a session are of one version."""
    local = local_path_of(url)
    with named(redact(url)):
        if local is not None:
            with open(local, "rb", buffering=0) as file:
                return read_at(file.fileno(), start, size)
    return Client(url, storage_options, session).get_range("", start, size)


def size_of(url: str, storage_options: Options = None) -> int:
    """The size of one file in bytes; the URL is its name, never a pattern."""
    local = local_path_of(url)
    with named(redact(url)):
        if local is not None:
            return os.path.getsize(local)
    return Client(url, storage_options).size("")
