"""Pieces of files: grouped into requests, read by threads, checked; a tensor lands when it is whole."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from shardstream.counters.layout import slot
from shardstream.counters.page import begin
from shardstream.counters.recorder import add
from shardstream.errors import CorruptionError
from shardstream.storage.fetch.ranges import RangeReader
from shardstream.storage.spans import GAP, Part, fill
from shardstream.weights.catalog import Catalog
from shardstream.weights.digests import BLOCK, filled

__all__ = ["Bounce", "Job", "Piece", "Transfer", "landed"]

_BYTES, _TENSORS = slot("weight_bytes"), slot("weight_tensors")
# Bytes of tensors that are planned together: small ones share requests, and a block is read once.
_LEAST_BATCH, _LARGEST_BATCH = 32 << 20, 256 << 20
_ALIGN = 64  # bytes

T = TypeVar("T")


class Bounce(Protocol):
    """Memory for pieces that do not go to their place directly."""

    view: memoryview

    def done(self) -> None:
        """The pieces in it are at their place, or on their way there."""


@dataclass
class Transfer(Generic[T]):
    """A tensor on its way.

    Attributes:
        job: What it is for.
        left: Pieces that have not come.
        end: It is called when all have come.
    """

    job: T
    size: int
    left: int = 0
    end: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Piece:
    """Neighbouring bytes of a file that belong to one tensor.

    Attributes:
        start: Where they begin in the file.
        size: How many.
        view: The memory that they fill; None if they go through a bounce buffer.
        finish: Called with the buffer and where they begin in it: brings them to their place.
        sliced: Whether only a part of the tensor is wanted.
    """

    start: int
    size: int
    view: memoryview | None = None
    finish: Callable[[Any, int], None] | None = None
    sliced: bool = False


@dataclass(frozen=True)
class Job(Generic[T]):
    """A tensor that is wanted.

    Attributes:
        value: What it is for.
        file: The file that it is in.
        start: Where its bytes begin: jobs come in this order.
        size: The bytes of memory that it takes.
        make: Gives its pieces, and what is called at the end. It is called shortly before they are read.
    """

    value: T
    file: str
    start: int
    size: int
    make: Callable[[], tuple[list[Piece], Callable[[], None]]]


@dataclass
class _Group:
    """Pieces that come in one request."""

    pieces: list[tuple[Piece, Transfer[Any]]] = field(default_factory=list)
    end: int = 0

    @property
    def start(self) -> int:
        return self.pieces[0][0].start


def _groups(pieces: Iterable[tuple[Piece, Transfer[Any]]]) -> list[_Group]:
    """Neighbours in one block of 8 MiB together."""
    found: list[_Group] = []
    for piece, transfer in sorted(pieces, key=lambda pair: pair[0].start):
        last = found[-1] if found else None
        if last is None or piece.start > last.end + GAP or piece.start // BLOCK != last.start // BLOCK:
            last = _Group()
            found.append(last)
        last.pieces.append((piece, transfer))
        last.end = max(last.end, piece.start + piece.size)
    return found


def landed(
    catalog: Catalog, jobs: Iterable[Job[T]], budget: int, bounce: Callable[[int], Bounce]
) -> Iterator[T]:
    """Read tensors by many threads; each is given when all of it is there.

    Args:
        catalog: Where the files are, and their checksums.
        jobs: What is wanted, in the order of files and bytes.
        budget: Bytes of tensors that are on their way, or here and not taken yet; at least one batch.
        bounce: Makes a buffer of so many bytes, in the thread that needs it.

    Yields:
        The value of each job, as it lands.

    Raises:
        CorruptionError: Bytes are not those that their checksum is of, even after they were read again.
        StateError: This is a forked process, and the first tensors were read before the fork.
        StorageError: They cannot be read.
    """
    begin("weights", catalog.place.store.url)
    ended: queue.SimpleQueue[Transfer[T] | BaseException] = queue.SimpleQueue()
    lock, alone = threading.Lock(), threading.Lock()
    waiting, on_way = _batches(jobs, max(_LEAST_BATCH, min(_LARGEST_BATCH, budget // 2))), 0
    with RangeReader(catalog.place.store) as reader:
        batch = next(waiting, None)
        while batch is not None or on_way:
            while batch is not None and (not on_way or on_way + sum(job.size for job in batch) <= budget):
                on_way += _send(catalog, batch, reader, bounce, ended, lock, alone)
                batch = next(waiting, None)
            while on_way:
                found = ended.get()
                if isinstance(found, BaseException):
                    raise found
                found.end()
                add(_TENSORS)
                add(_BYTES, found.size)
                yield found.job
                reader.check_process("stream_weights")
                on_way -= found.size
                if batch is not None and on_way + sum(job.size for job in batch) <= budget:
                    break


def _batches(jobs: Iterable[Job[T]], most: int) -> Iterator[list[Job[T]]]:
    batch: list[Job[T]] = []
    size = 0
    for job in jobs:
        if batch and (job.file != batch[0].file or size + job.size > most):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += job.size
    if batch:
        yield batch


def _send(
    catalog: Catalog,
    batch: Sequence[Job[T]],
    reader: RangeReader,
    bounce: Callable[[int], Bounce],
    ended: queue.SimpleQueue[Transfer[T] | BaseException],
    lock: threading.Lock,
    alone: threading.Lock,
) -> int:
    """Send for the tensors of one file; returns the bytes of memory that they take, at least 1 each."""
    file = batch[0].file
    pieces: list[tuple[Piece, Transfer[Any]]] = []
    transfers = []
    for job in batch:
        found, end = job.make()
        transfer = Transfer(job.value, max(1, job.size), len(found), end)
        transfers.append(transfer)
        pieces += [(piece, transfer) for piece in found]
        if not found:
            ended.put(transfer)

    def read(groups: list[_Group], into: Callable[[list[Part]], None]) -> None:
        for group in groups:
            _read(catalog, file, group, bounce, into)
            for _, transfer in group.pieces:
                with lock:
                    transfer.left -= 1
                    whole = not transfer.left
                if whole:
                    ended.put(transfer)

    def read_whole(groups: list[_Group]) -> None:
        # All that is wanted comes with one answer. One such file at a time is in memory.
        with alone:
            data = store.read_range(file, 0, catalog.files[file].bytes)
            read(groups, lambda parts: fill(parts, 0, data))

    def done(error: BaseException | None) -> None:
        if error is not None:
            ended.put(error)

    store, groups = catalog.place.store, _groups(pieces)
    if groups and store.sends_whole(file):
        reader.run(lambda: read_whole(groups), done)
    else:
        for group in groups:
            reader.run(lambda group=group: read([group], lambda parts: store.read_into(file, parts)), done)  # type: ignore[misc]
    return sum(transfer.size for transfer in transfers)


def _read(
    catalog: Catalog,
    file: str,
    group: _Group,
    bounce: Callable[[int], Bounce],
    into: Callable[[list[Part]], None],
) -> None:
    """Bring pieces to their places by `into`, and check what can be checked; what differs is read again."""
    start, end, expected = _checkable(catalog, file, group)
    places: list[int] = []  # in the bounce buffer; of no use for pieces that have their memory
    room = 0
    for piece, _ in group.pieces:
        places.append(room)
        if piece.view is None:
            room += -(-piece.size // _ALIGN) * _ALIGN
    fillers = _fillers(group, start, end) if expected else []
    buffer = bounce(room + sum(size for _, size in fillers))
    try:
        parts: list[Part] = []
        for (piece, _), place in zip(group.pieces, places, strict=True):
            view = buffer.view[place : place + piece.size] if piece.view is None else piece.view
            parts.append((piece.start, view))
        for filler, size in fillers:
            parts.append((filler, buffer.view[room : room + size]))
            room += size
        parts.sort(key=lambda part: part[0])
        store = catalog.place.store
        if not expected:
            into(parts)
        elif (
            filled(parts, into, store.local_path(file) is not None) != expected
            # They may have been damaged on their way.
            and filled(parts, lambda parts: store.read_into(file, parts), False) != expected
        ):
            raise CorruptionError(_damaged(catalog, file, group, start, end))
        for (piece, _), place in zip(group.pieces, places, strict=True):
            if piece.finish is not None:
                piece.finish(buffer, place)
    finally:
        buffer.done()


def _checkable(catalog: Catalog, file: str, group: _Group) -> tuple[int, int, str | None]:
    """The block of a group, and its checksum; for slices of which little is in the block, the group alone."""
    digests = catalog.digests.get(file)
    if digests is not None:
        number = group.start // BLOCK
        begin, end = number * BLOCK, min((number + 1) * BLOCK, digests.bytes)
        more = (end - begin) - (group.end - group.start)
        whole = not all(piece.sliced for piece, _ in group.pieces)
        if group.end <= end and (whole or more <= max(GAP, (end - begin) // 16)):
            return begin, end, digests.blocks[number]
    return group.start, group.end, None


def _fillers(group: _Group, start: int, end: int) -> list[tuple[int, int]]:
    """The bytes of a block that belong to no piece: (where they begin, how many)."""
    found = []
    at = start
    for piece, _ in group.pieces:
        if piece.start > at:
            found.append((at, piece.start - at))
        at = max(at, piece.start + piece.size)
    return found + ([(at, end - at)] if end > at else [])


def _damaged(catalog: Catalog, file: str, group: _Group, start: int, end: int) -> str:
    names = [
        tensor.name
        for tensor in catalog.files[file].tensors
        if tensor.start < end and start < tensor.start + tensor.size
    ]
    shown = ", ".join(repr(name) for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )
    return (
        f"{catalog.where(file)}: bytes {start} to {end} are damaged: their checksum differs; "
        f"they belong to {shown or 'the header'}: fetch the file again{catalog.anew}"
    )
