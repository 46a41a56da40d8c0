"""Files of a part on their way: the bytes that no disk has taken yet, their checksums, and where they lie."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import xxhash

from shardstream.checkpoint.layout import CELL, FilePlan
from shardstream.checkpoint.manifest import FileInfo
from shardstream.checkpoint.steps import steps
from shardstream.errors import StorageError
from shardstream.storage.local.writes import begin_sync, sync_folder

__all__ = ["Block", "Outgoing", "mapped", "named", "sync_names", "write_at"]


@dataclass(frozen=True)
class Block:
    """8 MiB of a file, fewer at its end. `taken` is memory of the pool, if the bytes lie in it."""

    parts: list[memoryview]
    taken: memoryview | None


@dataclass
class Outgoing:
    """A file on its way."""

    plan: FilePlan
    blocks: list[Block] = field(default_factory=list)  # that no disk has taken
    digests: list[str] = field(default_factory=list)
    sums: bytearray = field(default_factory=bytearray)  # of its cells
    descriptor: int = -1
    path: str | None = None  # where it lies on this machine

    def digest(
        self, parts: Sequence[memoryview], then: Callable[[Sequence[memoryview]], None] | None = None
    ) -> None:
        """Add the checksums of the next block.

        Args:
            parts: Its bytes.
            then: Called with each MiB, which the cache of the processor still has.
        """
        whole = xxhash.xxh3_64()
        for step in steps(parts):
            for part in step:
                whole.update(part)
            self._add_cells(step)
            if then is not None:
                then(step)
        self.digests.append(whole.hexdigest())

    def write(self, parts: Sequence[memoryview], start: int) -> None:
        """Write the next block to the file, and add its checksums."""
        at = start

        def write(step: Sequence[memoryview]) -> None:
            nonlocal at
            write_at(self.descriptor, step, at)
            at += sum(map(len, step))

        self.digest(parts, write)
        begin_sync(self.descriptor, start, at - start)

    def _add_cells(self, parts: Sequence[memoryview]) -> None:
        cell, room = xxhash.xxh3_64(), CELL
        for part in parts:
            start = 0
            while start < len(part):
                piece = part[start : start + room]
                start += len(piece)
                if len(piece) == CELL:
                    self.sums += xxhash.xxh3_64_digest(piece)
                    continue
                cell.update(piece)
                room -= len(piece)
                if not room:
                    self.sums += cell.digest()
                    cell.reset()
                    room = CELL
        if room < CELL:
            self.sums += cell.digest()

    @property
    def info(self) -> FileInfo:
        return FileInfo(self.plan.name, self.plan.size, self.digests)


def write_at(descriptor: int, parts: Sequence[memoryview], start: int) -> None:
    """Write memory to a file, from the byte `start` on."""
    left = [part for part in parts if len(part)]
    while left:
        count = os.pwritev(descriptor, left, start)
        start += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]


def sync_names(folder: str) -> None:
    """Make the names of the files of an attempt durable, and of the folders that they lie in."""
    for _ in range(3):
        if os.path.isdir(folder):
            with named(f"writing {folder}"):
                sync_folder(folder)
        folder = os.path.dirname(folder)


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Raise errors of the system as StorageError, which begins with `what`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror}") from error


@contextlib.contextmanager
def mapped(path: str, size: int) -> Iterator[memoryview]:
    """The bytes of a file."""
    if not size:
        yield memoryview(b"")
        return
    with named(f"reading {path}"), open(path, "rb") as file:
        found = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    yield memoryview(found)
    # Not closed: a request that was given up may still hold the memory. It goes with its last user.
