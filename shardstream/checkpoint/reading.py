"""Reads slices of tensors out of a checkpoint's files into memory, in threads."""

from __future__ import annotations

import mmap
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from shardstream.checkpoint.files import Files
from shardstream.checkpoint.layout import BLOCK, byte_size
from shardstream.checkpoint.manifest import TensorInfo
from shardstream.checkpoint.threads import in_threads
from shardstream.errors import CorruptionError
from shardstream.slices import Box, intersection, runs

__all__ = ["Files", "Request", "read", "requests_of"]

_THREADS = {True: 4, False: 16}  # by whether the files are local
_TOGETHER = 4  # blocks that one thread reads in turn
_VIEWS = 400  # parts of memory that a block is read into
_SMALL_RUN = 16 << 10  # bytes: shorter runs are copied out of whole rows
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
            if not files.cells(file, number, parts):
                if not hasattr(kept, "memory"):
                    kept.memory = memoryview(mmap.mmap(-1, BLOCK))  # no pages until they are written to
                memory = kept.memory[:size]
                views = _laid(parts, begin, memory)
                files.block(file, number, views or [memory])
                for start, into in parts if views is None else ():
                    into[:] = memory[start - begin : start - begin + len(into)]
            for pending in wanted:
                pending.finish()

    groups: list[list[tuple[int, int]]] = []
    for file, number in sorted(blocks):
        if not groups or groups[-1][-1] != (file, number - 1) or len(groups[-1]) == _TOGETHER:
            groups.append([])
        groups[-1].append((file, number))
    in_threads(work, groups, threads or _THREADS[files.is_local])


def _laid(parts: Sequence[tuple[int, memoryview]], begin: int, other: memoryview) -> list[memoryview] | None:
    """The memory that a block is read into: the wanted parts, and `other` for what lies between them.

    Args:
        parts: (first byte of the file, memory) of what is wanted.
        begin: The first byte of the block.
        other: Memory of the block's size.

    Returns:
        Memory in the order of the file; None if parts overlap, or are too many for one call of the system.
    """
    if len(parts) > _VIEWS:
        return None
    found: list[memoryview] = []
    at = begin
    for start, into in sorted(parts, key=lambda part: part[0]):
        if start < at:
            return None
        if start > at:
            found.append(other[at - begin : start - begin])
        found.append(into)
        at = start + len(into)
    if at < begin + len(other):
        found.append(other[at - begin :])
    return found


def requests_of(
    name: str, tensor: TensorInfo, offsets: tuple[int, ...], shape: tuple[int, ...], into: memoryview,
    without: Collection[int] = (),
) -> list[Request]:  # fmt: skip
    """What is to be read for a slice of a tensor.

    Args:
        name: Of the tensor, for messages.
        tensor: The tensor.
        offsets: Where the slice begins, in each dimension.
        shape: Of the slice.
        into: Writable memory for the slice, row-major: as many bytes as it has.
        without: The numbers of chunks that come in another way.

    Raises:
        CorruptionError: The chunks do not cover the slice.
    """
    target = Box(offsets, shape)
    item = byte_size(tensor.dtype, ())
    requests: list[Request] = []
    held = 0
    for number, chunk in enumerate(tensor.chunks):
        source = Box(chunk.offsets or (0,) * len(chunk.shape), chunk.shape)
        common = intersection(source, target)
        if common is None:
            continue
        held += common.elements
        if number in without:
            continue
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
