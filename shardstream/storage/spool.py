"""Sequences on a local disk, for lists that may have a billion items: few blocks are in memory."""

from __future__ import annotations

import contextlib
import heapq
import os
import pickle
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import zstandard

from shardstream.errors import StorageError
from shardstream.storage.named import named

__all__ = ["HELD", "Blobs", "SpoolError", "Spooled", "gathered", "in_order"]

HELD = 20_000  # items that stay in memory: a list of so many takes some megabytes
_BLOCK = 1000  # items of a block
_WAYS = 32  # sequences that are merged at a time

T = TypeVar("T")


class SpoolError(StorageError):
    """The temporary folder of this machine is full, or cannot be used. No input and no target is at fault."""


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        with named(f"a temporary file in {where}"):
            yield
    except StorageError as error:
        raise SpoolError(str(error)) from error.__cause__


class Blobs:
    """Pieces of bytes in a file without a name in the temporary folder. Its place is free at its end."""

    def __init__(self) -> None:
        import tempfile  # workers have no use for it

        self._where = tempfile.gettempdir()
        with (
            _named(self._where),
            tempfile.TemporaryFile(prefix="shardstream-") as file,
        ):
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self._ends = array("Q")

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, data: bytes) -> None:
        """Put a piece behind the others. Raises StorageError if the disk is full."""
        with _named(self._where):
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
        self._ends.append((self._ends[-1] if self._ends else 0) + len(data))

    def size(self, number: int) -> int:
        """The bytes of a piece."""
        return self._ends[number] - (self._ends[number - 1] if number else 0)

    def read(self, number: int) -> bytes:
        """A piece. Threads may read at the same time."""
        size = self.size(number)
        with _named(self._where):
            return os.pread(self._file, size, self._ends[number] - size)


class Spooled(Sequence[T], Generic[T]):
    """Items on a local disk. They are read in blocks, and best one after another.

    Args:
        items: The first items.
        row: Makes of an item what can be pickled fast. None: the item itself.
        item: Makes an item of that again.
    """

    def __init__(
        self,
        items: Iterable[T] = (),
        row: Callable[[T], Any] | None = None,
        item: Callable[[Any], T] | None = None,
    ) -> None:
        self._row, self._item = row, item
        self._blobs, self._open, self._count = Blobs(), list[T](), 0
        self._last: tuple[int, list[T]] = (-1, [])
        self.extend(items)

    def append(self, item: T) -> None:
        """Put an item behind the others."""
        self._open.append(item)
        self._count += 1
        if len(self._open) >= _BLOCK:
            rows = self._open if self._row is None else list(map(self._row, self._open))
            data = pickle.dumps(rows, protocol=pickle.HIGHEST_PROTOCOL)
            self._blobs.add(zstandard.ZstdCompressor(level=1).compress(data))
            self._open = []

    def extend(self, items: Iterable[T]) -> None:
        """Put items behind the others."""
        for item in items:
            self.append(item)

    def _block(self, number: int) -> list[T]:
        if number == len(self._blobs):
            return self._open
        data = zstandard.ZstdDecompressor().decompress(self._blobs.read(number))
        rows = pickle.loads(data)  # noqa: S301 - of this process, in a file without a name
        return rows if self._item is None else list(map(self._item, rows))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._blobs)):
            yield from self._block(number)
        yield from self._open

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(self._count))]
        if not -self._count <= place < self._count:
            raise IndexError(place)
        number, row = divmod(place % self._count, _BLOCK)
        if number == len(self._blobs):
            return self._open[row]
        if self._last[0] != number:
            self._last = number, self._block(number)
        return self._last[1][row]


def gathered(
    items: Iterable[T], row: Callable[[T], Any] | None = None, item: Callable[[Any], T] | None = None
) -> Sequence[T]:
    """All items: a list of at most `HELD`, or a sequence on a local disk.

    Args:
        items: The items.
        row, item: See `Spooled`.
    """
    few: list[T] = []
    left = iter(items)
    for each in left:
        few.append(each)
        if len(few) > HELD:
            found = Spooled(few, row, item)
            few.clear()
            found.extend(left)
            return found
    return few


def in_order(items: Iterable[T]) -> Sequence[T]:
    """The items sorted: a list of at most `HELD`, or a sequence on a local disk, by merging sorted ones.

    Args:
        items: The items, which can be compared. If they are in order already, nothing is merged.
    """
    levels: list[list[Spooled[T]]] = [[]]
    last: list[T] = []  # the last item of the newest sequence of the first level

    def put(some: list[T]) -> None:
        some.sort()
        if levels[0] and last and not some[0] < last[0]:  # type: ignore[operator]
            levels[0][-1].extend(some)
        else:
            levels[0].append(Spooled(some))
        last[:] = some[-1:]
        level = 0
        while len(levels[level]) > _WAYS:
            # The newest one may still grow.
            old, levels[level] = levels[level][:-1], levels[level][-1:]
            if level + 1 == len(levels):
                levels.append([])
            level += 1
            levels[level].append(Spooled(heapq.merge(*old)))  # type: ignore[type-var]

    few: list[T] = []
    for each in items:
        few.append(each)
        if len(few) > HELD:
            put(few)
            few = []
    if not any(levels):
        few.sort()
        return few
    if few:
        put(few)
    every = [found for level in levels for found in level]
    while len(every) > _WAYS:
        every = [*every[_WAYS:], Spooled(heapq.merge(*every[:_WAYS]))]  # type: ignore[type-var]
    return every[0] if len(every) == 1 else Spooled(heapq.merge(*every))  # type: ignore[type-var]
