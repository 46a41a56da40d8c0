"""Cuts a listing into windows: the files that may be one sample are in one window."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from shardstream.storage import spool
from shardstream.storage.inputs import FileInfo

__all__ = ["Windows", "windows"]

Windows = Iterable[list[FileInfo]]
_TOGETHER = 1000  # files of a window, at least: less work for each


class _UnorderedError(Exception):
    """The files are in no order by which a window can be closed."""


def windows(files: Sequence[FileInfo], base: Callable[[str], str]) -> Windows:
    """The files in lists, one after another. All files that may belong to one sample are in one list.

    A listing is in order: of its paths, as stores list; or folder by folder, as a disk is walked. So the
    files of a sample lie close together, and the memory is that of a few files. Few files, and those in
    another order, are one list.

    Args:
        files: The files.
        base: The begin of the URL that all files of its sample have in common. They have the same root, and
            are that text alone, or have a dot behind it.
    """
    if len(files) <= spool.HELD:
        return [list(files)]
    try:
        return _Windows(files, array("I", _sizes(files, base)))
    except _UnorderedError:
        return [list(files)]


class _Windows:
    """Windows of files, by how many files each has."""

    def __init__(self, files: Sequence[FileInfo], sizes: array[int]) -> None:
        self._files, self._sizes = files, sizes

    def __iter__(self) -> Iterator[list[FileInfo]]:
        left = iter(self._files)
        return (list(islice(left, size)) for size in self._sizes)


def _sizes(files: Iterable[FileInfo], base: Callable[[str], str]) -> Iterator[int]:
    """How many files each window has. Raises _UnorderedError if that cannot be said."""
    count = 0
    roots: set[str] = set()
    root: str | None = None
    last, folder, bar = "", "", ""
    by_path = by_folder = True  # as far as it was seen
    for info in files:
        url = info.url
        here = url[: url.rfind("/") + 1]
        if info.root != root:
            # Files that were named one by one have no root, and no order.
            if not info.root or info.root in roots:
                raise _UnorderedError
            root = info.root
            roots.add(root)
            by_path = by_folder = closed = True
        else:
            rises = url > last
            by_path = by_path and rises
            by_folder = by_folder and (rises if here == folder else _steps(url) > _steps(last))
            if not (by_path or by_folder):
                raise _UnorderedError
            # Behind the dot comes the slash: all that begins with a base and a dot comes before its bar.
            closed = url >= bar or (here != folder and not by_path)
        if closed:
            bar = ""
            if count >= _TOGETHER:
                yield count
                count = 0
        count += 1
        bar = max(bar, base(url) + "/")
        last, folder = url, here
    if count:
        yield count


def _steps(url: str) -> tuple[str, ...]:
    """A path such that the files of a folder come before those of the folders in it."""
    folder, name = os.path.split(url)
    return (*folder.split("/"), "", name)
