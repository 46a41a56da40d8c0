"""Single files by URL: which files an input names, and how they are read."""

from __future__ import annotations

import functools
import glob
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from shardstream.errors import OptionError, SourceError, StorageError
from shardstream.storage.local.reads import read_at
from shardstream.storage.options import Options, RequestOptions, split_options
from shardstream.storage.spool import HELD, Spooled, gathered, in_order
from shardstream.storage.store import local_path_of, named, redact
from shardstream.storage.transport.backends import by_fsspec
from shardstream.storage.transport.backends.fsspec import Found, Fsspec, found_of
from shardstream.storage.transport.client import Client, run
from shardstream.storage.transport.session import ReadSession

_AT_ONCE = 1000  # files that are looked at together
_BUFFER = 4 << 20  # bytes of a request for a file that is read from its beginning to its end


class FileInfo(NamedTuple):
    """An input file: its URL, its size in bytes, and the directory below which it was found ("" if named)."""

    url: str
    size: int
    root: str


_S3_QUERY = re.compile(r"s3a?://.*\?[\w.-]+=", re.IGNORECASE)  # else `?` stands for any character
MARKER = "an empty object that marks a folder"
# SQLAlchemy's own dialects, with or without a driver; and DuckDB.
_DATABASES = re.compile(r"(sqlite|duckdb|postgres(ql)?|mysql|mariadb|oracle|mssql)(\+\w+)?://", re.IGNORECASE)

Unread = list[tuple[str, str]]  # where it is, and why it cannot be read


def expand(
    urls: Sequence[str],
    storage_options: Options = None,
    unread: Unread | None = None,
    markers: Unread | None = None,
) -> Sequence[FileInfo]:
    """The files that URLs name, in a fixed order. Very many are on a local disk, and not in memory.

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
    found = gathered(_named(urls, storage_options, unread, markers), tuple, FileInfo._make)
    if not found:
        raise SourceError(f"{', '.join(map(redact, map(str, urls))) or 'no sources'}: nothing there to read")
    return found


def _named(
    urls: Sequence[str], storage_options: Options, unread: Unread | None, markers: Unread | None
) -> Iterator[FileInfo]:
    for url in urls:
        if names_database(str(url)):
            yield FileInfo(str(url), 0, "")
            continue
        # A file may have this very name, such as a{1,2}.tar.
        literal = local_path_of(str(url))
        for name in [str(url)] if literal and os.path.lexists(literal) else _braces(str(url)):
            below, some = _below(name, storage_options, unread, markers), 0
            while True:
                with named(redact(name)):
                    infos = list(itertools.islice(below, _AT_ONCE))
                if not infos:
                    break
                yield from infos
                some += len(infos)
            if not some:
                if _S3_QUERY.match(name):
                    raise OptionError(
                        f"{redact(name)}: nothing there to read. A URL of S3 has no query: leave out the `?` "
                        "and what follows it, and give options as storage_options"
                    )
                raise SourceError(f"{redact(name)}: nothing there to read")


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
    listed: Sequence[Found]
    if any(letter in path for letter in "*?["):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        listed = sorted(found_of(name, told) for name, told in ask("glob", detail=True).items())
    elif ask("isdir"):
        root, listed = path.rstrip("/"), in_order(_pages(url, backend, path, ours))
    else:
        yield FileInfo(url, Client(url, options).size(""), "")
        return
    after = itertools.chain(itertools.islice(listed, 1, None), [("", 0, False)])
    for (name, size, is_file), (behind, *_) in zip(listed, after, strict=False):  # there may be none at all
        if not size and (name.endswith("/") or behind.startswith(f"{name}/") or name.rstrip("/") == root):
            if markers is not None:
                markers.append((redact(f"{start}{name.lstrip(slash)}"), MARKER))
            continue
        hidden = any(part.startswith(".") for part in name[len(root) :].split("/"))
        if is_file and not hidden:
            below = f"{start}{root.lstrip(slash)}" if root else ""
            yield FileInfo(f"{start}{name.lstrip(slash)}", int(size), below)  # type: ignore[arg-type]


def _pages(url: str, backend: Fsspec, path: str, options: RequestOptions) -> Iterator[Found]:
    """All objects below a path, of a listing that is taken page by page."""
    after = ""
    while True:
        some, after = run(redact(url), functools.partial(backend.find, path, after), options)
        yield from some
        if not after:
            return


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
        for folder, folders, names in _walk(path, closed):
            for name in folders:
                if os.path.islink(where := os.path.join(folder, name)):
                    unreadable(where, "a link to a directory is not followed; name the directory itself")
            for name in names:
                yield from listed(os.path.join(folder, name), path)
    elif glob.has_magic(path):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        for name in in_order(glob.iglob(path, recursive=True)):
            if not os.path.isdir(name):
                yield from listed(name, root)


def _walk(root: str, closed: Callable[[OSError], None]) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """Each directory below one, with the sorted names of its directories and of its other entries.

    As os.walk does, from the top down; but a directory may have more entries than memory has room for.
    Hidden ones are passed over, and links are not followed.

    Args:
        root: The directory.
        closed: Called with the error of a directory that cannot be read.
    """
    waiting: list[Iterator[str]] = [iter([root])]
    while waiting:
        folder = next(waiting[-1], None)
        if folder is None:
            waiting.pop()
            continue
        try:
            folders, names = _entries(folder)
        except OSError as error:
            closed(error)
            continue
        yield folder, folders, names
        waiting.append(_below_it(folder, folders))


def _below_it(folder: str, folders: Iterable[str]) -> Iterator[str]:
    paths = (os.path.join(folder, name) for name in folders)
    return (path for path in paths if not os.path.islink(path))


def _entries(folder: str) -> tuple[Sequence[str], Sequence[str]]:
    """The sorted names of the directories in a directory, and of its other entries."""
    folders: Spooled[str] | list[str] = []

    def names() -> Iterator[str]:
        nonlocal folders
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    yield entry.name
                    continue
                folders.append(entry.name)
                if len(folders) > HELD and isinstance(folders, list):
                    folders = Spooled(folders)

    found = in_order(names())
    return in_order(folders), found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


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
