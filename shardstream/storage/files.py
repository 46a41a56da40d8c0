"""Single files by URL: which ones an input names, and reading them."""

from __future__ import annotations

import glob
import io
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from shardstream.errors import OptionError, SourceError, StorageError
from shardstream.storage.calls import Remote, Scope, run
from shardstream.storage.remote import Options, local_path_of, named, redact
from shardstream.storage.stores import by_fsspec

_BUFFER = 4 << 20  # bytes of a request for a file that is read from its beginning to its end


class FileInfo(NamedTuple):
    """An input file: its URL, its size in bytes, and the directory it was found below ("" if named)."""

    url: str
    size: int
    root: str


def expand(urls: Sequence[str], storage_options: Options = None) -> list[FileInfo]:
    """The files that URLs name: files, directories, globs and brace lists, in a fixed order."""
    found: list[FileInfo] = []
    for url in urls:
        # What lies there by this very name is meant: a file may be called a{1,2}.tar.
        literal = local_path_of(str(url))
        for name in [str(url)] if literal and os.path.lexists(literal) else _braces(str(url)):
            with named(redact(name)):
                below = list(_below(name, storage_options))
            if not below:
                raise SourceError(f"{redact(name)}: nothing there to read")
            found += below
    if not found:
        raise SourceError(f"{', '.join(map(redact, map(str, urls))) or 'no sources'}: nothing there to read")
    return found


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


def _below(url: str, options: Options) -> Iterator[FileInfo]:
    local = local_path_of(url)
    if local is not None:
        yield from _below_local(local)
        return
    backend, path = by_fsspec(url, options)

    def ask(method: str, **more: Any) -> Any:
        return run(redact(url), lambda: backend.call(method, path, **more))

    # What comes before the path stays: it may name a host, or be nothing, as for http.
    start, slash = url.partition("://")[0] + "://", "/"
    if path and url.rstrip("/").endswith(path):
        start, slash = url.rstrip("/")[: -len(path)], ""
    if any(letter in path for letter in "*?["):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        entries = ask("glob", detail=True)
    elif ask("isdir"):
        root, entries = path.rstrip("/"), ask("find", detail=True)
    else:
        yield FileInfo(url, Remote(url, options).size(""), "")
        return
    for name in sorted(entries):
        hidden = any(part.startswith(".") for part in name[len(root) :].split("/"))
        if entries[name]["type"] == "file" and not hidden:
            below = f"{start}{root.lstrip(slash)}" if root else ""
            yield FileInfo(f"{start}{name.lstrip(slash)}", int(entries[name]["size"]), below)


def _below_local(path: str) -> Iterator[FileInfo]:
    if os.path.isfile(path):
        yield FileInfo(path, os.path.getsize(path), "")
    elif os.path.isdir(path):
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                file = os.path.join(folder, name)
                if not name.startswith(".") and os.path.isfile(file):
                    yield FileInfo(file, os.path.getsize(file), path)
    elif glob.has_magic(path):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        for name in sorted(glob.glob(path, recursive=True)):
            if os.path.isfile(name):
                yield FileInfo(name, os.path.getsize(name), root)


def open_input(url: str, storage_options: Options = None) -> BinaryIO:
    """A file to read a source from; it can seek where its store can."""
    local = local_path_of(url)
    with named(redact(url)):
        if local is not None:
            return open(local, "rb")
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(Remote(url, storage_options)), _BUFFER))


class _RemoteFile(io.RawIOBase):
    """A remote file, read by ranges that are retried and checked."""

    def __init__(self, remote: Remote) -> None:
        self._remote, self._at = remote, 0
        self._size = remote.size("")

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
        data = self._remote.get_range("", self._at, size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_into(file: BinaryIO, view: memoryview, where: str) -> int:
    """Fill `view` from a file; returns its length, or raises StorageError where the file ends early."""
    with named(where):
        filled = 0
        while filled < len(view):
            count = file.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                raise StorageError(f"{where}: it ends before the size that was listed; did it change?")
            filled += count
    return filled


def read_slice(
    url: str, start: int, size: int, storage_options: Options = None, scope: Scope | None = None
) -> bytes | memoryview:
    """At most `size` bytes of a file from `start`; fewer at its end. All of a scope are of one version."""
    local = local_path_of(url)
    with named(redact(url)):
        if local is not None:
            with open(local, "rb", buffering=0) as file:
                # pread allocates what it is asked for, which may be more than there is.
                size = min(size, max(0, os.fstat(file.fileno()).st_size - start))
                return os.pread(file.fileno(), size, start)
    return Remote(url, storage_options, scope).get_range("", start, size)


def map_file(url: str) -> memoryview | None:
    """A local file mapped into memory, read-only; None for a remote one.

    Reading a file that another process cuts short while it is mapped kills this process (SIGBUS):
    shards are never changed in place.
    """
    local = local_path_of(url)
    if local is None:
        return None
    with named(url), open(local, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def size_of(url: str, storage_options: Options = None) -> int:
    """The size of one file in bytes; the URL is its name, never a pattern."""
    local = local_path_of(url)
    with named(redact(url)):
        if local is not None:
            return os.path.getsize(local)
    return Remote(url, storage_options).size("")
