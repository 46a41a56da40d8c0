"""The files of a checkpoint, read in blocks. Every byte that is given out is verified.

A block of 8 MiB is read as a whole if most of it is wanted. Else its cells of 64 KiB are read,
whose checksums lie beside the file.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import defaultdict
from collections.abc import Sequence

import xxhash

from shardstream.checkpoint.layout import BLOCK, CELL, byte_size, sums_name
from shardstream.checkpoint.manifest import FileInfo, Manifest
from shardstream.checkpoint.steps import steps
from shardstream.errors import CorruptionError, StorageError
from shardstream.storage.local.reads import read_parts
from shardstream.storage.store import Store

__all__ = ["Files", "verify_file"]

_GAP = 4  # cells between two runs of cells that are read with them


class Files:
    """The files of a checkpoint: those that lie on a local disk, and the store.

    Args:
        store: The folder of the checkpoint.
        manifest: Its manifest.
        local: The folder of the checkpoint on a local disk, or None. Its files are used if they have the
            right sizes, and damaged blocks of them come from the store.
    """

    def __init__(self, store: Store, manifest: Manifest, local: Store | None = None) -> None:
        self.store, self.manifest = store, manifest
        self.bytes_read = 0
        self.damaged: list[str] = []  # local files with damaged blocks
        self._local = local
        self._paths: dict[int, str | None] = {}
        self._sums: dict[int, bytes] = {}
        self._reading_sums: dict[int, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()

    @property
    def is_local(self) -> bool:
        """Whether the store itself is a local disk."""
        return self.store.local_path("") is not None

    def where(self, file: int) -> str:
        """A file with its root, for messages."""
        return self.store.where(self.manifest.path(self.manifest.files[file]))

    def block(self, file: int, number: int, parts: Sequence[memoryview]) -> None:
        """Read and verify a block of a file.

        Args:
            file: The number of the file.
            number: The number of the block.
            parts: Memory for its bytes, in their order: as many as the block has.

        Raises:
            CorruptionError: The bytes are not those that were written. It names the file, and the tensors
                that have damaged cells.
        """
        digest, start = self.manifest.files[file].digests[number], number * BLOCK
        with self._lock:
            self.bytes_read += sum(map(len, parts))
        path = self._path(file)
        if path is not None:
            if _digest_at(path, parts, start) == digest:
                return
            if path == self.store.local_path(self.manifest.path(self.manifest.files[file])):
                raise self._damaged(path, file, number, parts)
            if path not in self.damaged:
                self.damaged.append(path)
        path = self.manifest.path(self.manifest.files[file])
        for _ in range(2):  # the first time, the bytes may have changed on their way
            self.store.read_into(path, _placed(parts, start))
            found = xxhash.xxh3_64()
            for part in parts:
                found.update(part)
            if found.hexdigest() == digest:
                return
        raise self._damaged(self.store.where(path), file, number, parts)

    def cells(self, file: int, number: int, wanted: Sequence[tuple[int, memoryview]]) -> bool:
        """Read and verify those cells of a block that have wanted bytes.

        Args:
            file: The number of the file.
            number: The number of the block.
            wanted: (first byte of the file, memory) of what is wanted in the block.

        Returns:
            False if it is better to read the whole block: most of it is wanted, or its cells cannot be
            verified. The memory may then have been written to.
        """
        begin, total = number * BLOCK, self.manifest.files[file].bytes
        touched = {
            cell for start, into in wanted for cell in range(start // CELL, -(-(start + len(into)) // CELL))
        }
        found = _runs(sorted(touched))
        size = min(BLOCK, total - begin)
        if 20 * sum((last - first) * CELL for first, last in found) > 19 * size:
            return False
        sums = self._cell_sums(file)
        if len(sums) != 8 * -(-total // CELL):
            return False
        for first, last in found:
            start = first * CELL
            memory = memoryview(bytearray(min(last * CELL, total) - start))
            with self._lock:
                self.bytes_read += len(memory)
            local = self._path(file)
            if local is None:
                path = self.manifest.path(self.manifest.files[file])
                self.store.read_into(path, [(start, memory)])
            elif not _read_at(local, memory, start):
                return False
            for cell in range(first, last):
                place = (cell - first) * CELL
                if xxhash.xxh3_64_digest(memory[place : place + CELL]) != sums[8 * cell : 8 * cell + 8]:
                    return False
            for at, into in wanted:
                if start <= at < start + len(memory):
                    into[:] = memory[at - start : at - start + len(into)]
        return True

    def _cell_sums(self, file: int) -> bytes:
        """The checksums of a file's cells; b"" if they are not there."""
        with self._lock:
            lock = self._reading_sums[file]
        with lock:
            if file not in self._sums:
                path = sums_name(self.manifest.path(self.manifest.files[file]))
                for store in (self._local, self.store):
                    if store is None or (store is self._local and not store.exists(path)):
                        continue
                    try:
                        self._sums[file] = bytes(store.read(path, 8 * BLOCK))
                        break
                    except StorageError:
                        self._sums[file] = b""  # blocks are read as a whole
                with self._lock:
                    self.bytes_read += len(self._sums[file])
            return self._sums[file]

    def _damaged(self, where: str, file: int, number: int, parts: Sequence[memoryview]) -> CorruptionError:
        """The error of a block, which names the cells that differ if their checksums are there."""
        begin, got = number * BLOCK, b"".join(parts)
        sums = self._cell_sums(file)
        cells = [
            (begin + place, begin + min(place + CELL, len(got)))
            for place in range(0, len(got), CELL)
            if xxhash.xxh3_64_digest(got[place : place + CELL])
            != sums[8 * ((begin + place) // CELL) : 8 * ((begin + place) // CELL) + 8]
        ]
        found = cells or [(begin, begin + len(got))]
        names = [name for start, end in found for name in _within(self.manifest, file, start, end)]
        return CorruptionError(
            f"{where}: bytes {found[0][0]} to {found[-1][1]} are not those that were written; "
            f"tensors in them: {_listed(names) or 'none'}"
        )

    def _path(self, file: int) -> str | None:
        """Where a file lies on this machine, or None."""
        with self._lock:
            if file not in self._paths:
                self._paths[file] = self._found(file)
            return self._paths[file]

    def _found(self, file: int) -> str | None:
        info = self.manifest.files[file]
        for store in (self._local, self.store):
            path = None if store is None else store.local_path(self.manifest.path(info))
            if path is None:
                continue
            try:
                size = os.stat(path).st_size
            except OSError as error:
                if store is self.store:
                    raise StorageError(f"{path}: {error.strerror}") from error
                continue
            if size == info.bytes:
                return path
            if store is self.store:
                raise CorruptionError(f"{path} has {size} bytes, {info.bytes} were written")
        return None


def _read_at(path: str, into: memoryview, start: int) -> bool:
    """Fill memory from a file, which is opened for that: there may be thousands. Whether it could be."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            read_parts(descriptor, [(start, into)], path)
        finally:
            os.close(descriptor)
    except (OSError, StorageError):
        return False
    return True


def _placed(parts: Sequence[memoryview], start: int) -> list[tuple[int, memoryview]]:
    """(first byte of the file, memory) of parts that lie one after another."""
    ends = itertools.accumulate(map(len, parts), initial=start)
    return list(zip(ends, parts, strict=False))


def _digest_at(path: str, parts: Sequence[memoryview], start: int) -> str:
    """Fill memory from a file; the checksum of what was read, or "" if it could not be read.

    In steps, for a checksum of bytes that the processor has just copied costs a third.
    """
    found = xxhash.xxh3_64()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for step in steps(parts):
                read_parts(descriptor, _placed(step, start), path)
                for part in step:
                    found.update(part)
                start += sum(map(len, step))
        finally:
            os.close(descriptor)
    except (OSError, StorageError):
        return ""
    return found.hexdigest()


def _runs(cells: Sequence[int]) -> list[tuple[int, int]]:
    """(first, behind the last) of cells that are read together."""
    found: list[tuple[int, int]] = []
    for cell in cells:
        if found and cell - found[-1][1] <= _GAP:
            found[-1] = found[-1][0], cell + 1
        else:
            found.append((cell, cell + 1))
    return found


def verify_file(files: Files, file: int) -> None:
    """Read a file and verify every block of it.

    Raises:
        CorruptionError: A block is damaged; it names the tensors in it.
    """
    info: FileInfo = files.manifest.files[file]
    memory = memoryview(bytearray(min(BLOCK, info.bytes)))
    for number in range(len(info.digests)):
        begin = number * BLOCK
        size = min(BLOCK, info.bytes - begin)
        files.block(file, number, [memory[:size]])


def _within(manifest: Manifest, file: int, start: int, end: int) -> list[str]:
    """The names of the tensors that have bytes there."""
    return [
        name
        for name, tensor in manifest.tensors.items()
        for chunk in tensor.chunks
        if chunk.file == file and chunk.start < end
        and chunk.start + byte_size(tensor.dtype, chunk.shape) > start
    ]  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    found = sorted(set(names))
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
