"""Reads parts of a checkpoint's files into memory. Every byte that is read is verified.

A block of 8 MiB is read as a whole if most of it is wanted. Else its cells of 64 KiB are read,
whose checksums lie beside the file.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import xxhash

from shardstream.checkpoint.commit import in_threads
from shardstream.checkpoint.layout import BLOCK, CELL, byte_size, sums_name
from shardstream.checkpoint.manifest import FileInfo, Manifest, TensorInfo
from shardstream.checkpoint.slices import Box, intersection, runs
from shardstream.errors import CorruptionError, StorageError
from shardstream.storage.store import Store

__all__ = ["Files", "Request", "read", "requests_of", "verify_file"]

_THREADS = {True: 4, False: 16}  # by whether the files are local
_TOGETHER = 4  # blocks that one thread reads in turn
_SMALL_RUN = 16 << 10  # bytes: shorter runs are copied out of whole rows
_GAP = 4  # cells between two runs of cells that are read with them
_ROWS = 8 << 20  # bytes of such rows at a time


class Request(NamedTuple):
    """Bytes of a file that are wanted.

    Attributes:
        file: The number of the file in the manifest.
        start: The first byte.
        size: How many bytes.
        into: Writable memory for them; None for memory that is made while they are read.
        name: Of the tensor, for messages.
        done: Called with the memory once all bytes are there and verified; or None.
    """

    file: int
    start: int
    size: int
    into: memoryview | None
    name: str
    done: Callable[[memoryview], None] | None = None


class _Pending:
    """A request that is being read."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.left = 0  # blocks
        self.memory = request.into
        self.lock = threading.Lock()

    def part(self, begin: int, end: int) -> tuple[int, memoryview]:
        """(first byte, memory) of what is wanted of these bytes of the file."""
        with self.lock:
            if self.memory is None:
                self.memory = memoryview(bytearray(self.request.size))
            first, size = self.request.start, self.request.size
            start = max(begin, first)
            return start, self.memory[start - first : min(end, first + size) - first]

    def finish(self) -> None:
        """A block of it is there."""
        with self.lock:
            self.left -= 1
            memory = self.memory
            if self.left > 0 or memory is None:
                return
            self.memory = None
        if self.request.done is not None:
            self.request.done(memory)


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

    def block(self, file: int, number: int, into: memoryview) -> None:
        """Read and verify a block of a file.

        Args:
            file: The number of the file.
            number: The number of the block.
            into: Memory of the block's size.

        Raises:
            CorruptionError: The bytes are not those that were written. It names the file, and the tensors
                that have damaged cells.
        """
        digest = self.manifest.files[file].digests[number]
        with self._lock:
            self.bytes_read += len(into)
        path = self._path(file)
        if path is not None:
            if _read_at(path, into, number * BLOCK) and xxhash.xxh3_64_hexdigest(into) == digest:
                return
            if path == self.store.local_path(self.manifest.path(self.manifest.files[file])):
                raise self._damaged(path, file, number, into)
            if path not in self.damaged:
                self.damaged.append(path)
        path = self.manifest.path(self.manifest.files[file])
        for _ in range(2):  # the first time, the bytes may have changed on their way
            self.store.read_into(path, [(number * BLOCK, into)])
            if xxhash.xxh3_64_hexdigest(into) == digest:
                return
        raise self._damaged(self.store.where(path), file, number, into)

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
        if 4 * sum((last - first) * CELL for first, last in found) > 3 * size:
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

    def _damaged(self, where: str, file: int, number: int, got: memoryview) -> CorruptionError:
        """The error of a block, which names the cells that differ if their checksums are there."""
        begin = number * BLOCK
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
            while into:
                count = os.preadv(descriptor, [into], start)
                if not count:
                    return False
                into, start = into[count:], start + count
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True


def _runs(cells: Sequence[int]) -> list[tuple[int, int]]:
    """(first, behind the last) of cells that are read together."""
    found: list[tuple[int, int]] = []
    for cell in cells:
        if found and cell - found[-1][1] <= _GAP:
            found[-1] = found[-1][0], cell + 1
        else:
            found.append((cell, cell + 1))
    return found


def read(files: Files, requests: Sequence[Request], threads: int | None = None) -> None:
    """Read what is requested, in threads.

    Args:
        files: The files.
        requests: In any order. Those that share blocks are best near each other.
        threads: How many; None chooses.

    Raises:
        CorruptionError: Bytes are not those that were written; it names the file and the tensor.
        StorageError: The store failed.
    """
    blocks: dict[tuple[int, int], list[_Pending]] = defaultdict(list)
    for request in requests:
        pending = _Pending(request)
        if not request.size:
            pending.finish()
            continue
        numbers = range(request.start // BLOCK, -(-(request.start + request.size) // BLOCK))
        pending.left = len(numbers)
        for number in numbers:
            blocks[request.file, number].append(pending)
    kept = threading.local()  # a block of memory for each thread

    def work(group: Sequence[tuple[int, int]]) -> None:
        for file, number in group:
            wanted = blocks.pop((file, number))
            begin = number * BLOCK
            size = min(BLOCK, files.manifest.files[file].bytes - begin)
            parts = [pending.part(begin, begin + size) for pending in wanted]
            if len(parts) == 1 and len(parts[0][1]) == size:
                files.block(file, number, parts[0][1])
            elif not files.cells(file, number, parts):
                if not hasattr(kept, "memory"):
                    kept.memory = memoryview(bytearray(BLOCK))
                memory = kept.memory[:size]
                files.block(file, number, memory)
                for start, into in parts:
                    into[:] = memory[start - begin : start - begin + len(into)]
            for pending in wanted:
                pending.finish()

    groups: list[list[tuple[int, int]]] = []
    for file, number in sorted(blocks):
        if not groups or groups[-1][-1] != (file, number - 1) or len(groups[-1]) == _TOGETHER:
            groups.append([])
        groups[-1].append((file, number))
    in_threads(work, groups, threads or _THREADS[files.is_local])


def requests_of(
    name: str, tensor: TensorInfo, offsets: tuple[int, ...], shape: tuple[int, ...], into: memoryview
) -> list[Request]:
    """What is to be read for a slice of a tensor.

    Args:
        name: Of the tensor, for messages.
        tensor: The tensor.
        offsets: Where the slice begins, in each dimension.
        shape: Of the slice.
        into: Writable memory for the slice, row-major: as many bytes as it has.

    Raises:
        CorruptionError: The chunks do not cover the slice.
    """
    target = Box(offsets, shape)
    item = byte_size(tensor.dtype, ())
    requests: list[Request] = []
    held = 0
    for chunk in tensor.chunks:
        source = Box(chunk.offsets or (0,) * len(chunk.shape), chunk.shape)
        common = intersection(source, target)
        if common is None:
            continue
        held += common.elements
        found = runs(source, target, common)
        first = next(found)
        if first.length * item < _SMALL_RUN and first.length < common.elements:
            requests += _rows(name, chunk.file, chunk.start, item, source, target, common, into)
            continue
        for run in (first, *found):
            start = chunk.start + run.source * item
            view = into[run.target * item : (run.target + run.length) * item]
            requests.append(Request(chunk.file, start, len(view), view, name))
    if held != target.elements:
        raise CorruptionError(f"tensor {name!r}: its parts hold {held} elements of {target.elements}")
    return requests


def _rows(
    name: str, file: int, start: int, item: int, source: Box, target: Box, common: Box, into: memoryview
) -> list[Request]:
    """Requests for short runs: whole rows are read, and what is wanted is copied out of them."""
    import numpy as np

    kind = np.dtype((np.void, item))
    filled = np.frombuffer(into, kind).reshape(target.shape)
    inner = tuple(
        slice(c - s, c - s + n)
        for c, s, n in zip(common.offsets[1:], source.offsets[1:], common.shape[1:], strict=True)
    )
    place = tuple(
        slice(c - t, c - t + n)
        for c, t, n in zip(common.offsets[1:], target.offsets[1:], common.shape[1:], strict=True)
    )
    row = Box(source.offsets[1:], source.shape[1:]).elements * item
    at_once = max(1, _ROWS // row)
    requests = []
    for first in range(common.offsets[0], common.offsets[0] + common.shape[0], at_once):
        count = min(at_once, common.offsets[0] + common.shape[0] - first)
        begin = first - target.offsets[0]

        def copy(memory: memoryview, begin: int = begin, count: int = count) -> None:
            rows = np.frombuffer(memory, kind).reshape((count, *source.shape[1:]))
            filled[(slice(begin, begin + count), *place)] = rows[(slice(None), *inner)]

        offset = start + (first - source.offsets[0]) * row
        requests.append(Request(file, offset, count * row, None, name, copy))
    return requests


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
        files.block(file, number, memory[:size])


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
