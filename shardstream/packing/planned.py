"""Plans of very many files: what their tasks read stands in objects of the target, and not in memory.

A plan is a list of tasks with the parts of files that each reads. A plan of many parts is written in pieces
of `SPANS` parts, first to the local disk, and then to the target, as
`.pack-plan/IDENTITY-CHECKSUM-NNNNN.msgpack.zst`. From then on a task is a number, and from which to which
part of the plan it reads: few bytes, which go to any worker. The worker reads these parts from the target.

The names have the begin of the identity of the pack, and a checksum of all parts of the plan. So the objects
of another pack, or of the same one before its input has changed, are never taken for those of this one.

An object is two frames of zstd, each with a checksum: a head, which names the plan and the object's number,
and the columns of the parts.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, overload

import msgspec
import zstandard

from shardstream.errors import CorruptionError, StorageError
from shardstream.packing.claim import Claim
from shardstream.packing.sources.base import FileSpan, Task
from shardstream.storage.secrets import url_has_secret
from shardstream.storage.spool import Blobs
from shardstream.storage.store import Options, Store

__all__ = ["FOLDER", "HELD", "PlannedTask", "StoredPlan", "clear_plan", "object_name", "planned", "whole"]

FOLDER = ".pack-plan"
HELD = 10_000  # parts of files in a plan that stays in memory
SPANS = 10_000  # parts of files in an object
_AT_ONCE = 16  # requests
_CHECKED = 1000  # objects that are put between two looks at the claim
_KEPT = 4  # objects that a worker keeps: the next task often begins where the last one has ended
_MOST = 1 << 30  # bytes of an object that is read
_AGAIN = "the same command with --resume, or the part of a pack again, makes it anew"


class PlannedTask(Task):
    """A task of a plan that is not in memory.

    Args:
        number: The number of the task.
        first: The place of its first part of a file, among those of the plan.
        end: The place behind its last one.
        size: The bytes of input that it reads.
        step: How many parts an object of the plan has.
        checksum: That of the plan, which stands in the names of its objects.
        plan: The plan, in the process that has made it.
    """

    first: int
    end: int
    size: int
    step: int
    checksum: int

    def __init__(
        self,
        number: int,
        first: int,
        end: int,
        size: int,
        step: int,
        checksum: int,
        plan: StoredPlan | None = None,
    ) -> None:
        values = {"number": number, "first": first, "end": end, "size": size, "step": step}
        for name, value in {**values, "checksum": checksum, "_plan": plan}.items():
            object.__setattr__(self, name, value)

    @property
    def files(self) -> tuple[FileSpan, ...]:
        """The parts of files, read each time. In a process that has not made the plan there are none."""
        plan: StoredPlan | None = self.__dict__["_plan"]
        return () if plan is None else tuple(plan.spans(self.first, self.end))

    @property
    def work(self) -> int:
        """About how many bytes it has to do with, see `work_of`; in another process what it reads."""
        plan: StoredPlan | None = self.__dict__["_plan"]
        return self.size if plan is None else plan.works[self.number]

    @property
    def is_here(self) -> bool:
        """Whether this process has made the plan."""
        return self.__dict__["_plan"] is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return PlannedTask, (self.number, self.first, self.end, self.size, self.step, self.checksum)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlannedTask) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.number, self.first, self.end))


class _Head(msgspec.Struct, array_like=True, frozen=True):
    """Of an object: the identity of the plan, and the number of the object."""

    plan: str
    number: int


class _Columns(msgspec.Struct, array_like=True, frozen=True):
    """Parts of files, a list for each value of `FileSpan`. Names of files need not be valid Unicode."""

    urls: list[bytes]
    starts: list[int]
    ends: list[int]
    sizes: list[int]
    key_bases: list[bytes]
    labels: list[bytes]
    prefixes: list[bytes]
    units: list[tuple[int, int]]


def _encoded(texts: Iterable[str]) -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def _decoded(texts: Iterable[bytes]) -> Iterator[str]:
    return (text.decode("utf-8", "surrogatepass") for text in texts)


def _frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def _columns(spans: Sequence[FileSpan]) -> bytes:
    urls, starts, ends, sizes, keys, labels, prefixes, units = map(list, zip(*spans, strict=True))
    return msgspec.msgpack.encode(
        _Columns(
            _encoded(urls), starts, ends, sizes, _encoded(keys), _encoded(labels), _encoded(prefixes), units
        )
    )


def _spans(frame: bytes) -> list[FileSpan]:
    data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=_MOST)
    found = msgspec.msgpack.decode(data, type=_Columns)
    texts = (_decoded(each) for each in (found.urls, found.key_bases, found.labels, found.prefixes))
    urls, keys, labels, prefixes = texts
    rows = zip(urls, found.starts, found.ends, found.sizes, keys, labels, prefixes, found.units, strict=True)
    return list(map(FileSpan._make, rows))


def object_name(plan: str, checksum: int, number: int) -> str:
    """The name of an object of a plan.

    Args:
        plan: The identity of the pack.
        checksum: That of the plan; see `StoredPlan.checksum`.
        number: The number of the object.
    """
    return f"{FOLDER}/{_begin(plan)}{checksum:08x}-{number:05d}.msgpack.zst"


def _begin(plan: str) -> str:
    return f"{plan[:8]}-"


class StoredPlan(Sequence[Task]):
    """The tasks of a plan, on the local disk: in memory are three numbers for each task.

    Attributes:
        works: About how many bytes each task has to do with, see `work_of`.
        checksum: Of all parts of files of the plan, when it is closed.
    """

    checksum = 0

    def __init__(self) -> None:
        self._step = SPANS
        self._blobs, self._open = Blobs(), list[FileSpan]()
        self._sizes, self._ends, self.works = array("Q"), array("Q"), array("Q")
        self._last: tuple[int, list[FileSpan]] = (-1, [])

    def add(self, task: Task) -> None:
        """Put a task behind the others."""
        from shardstream.packing.work import work_of  # workers start sooner without it

        self.works.append(work_of(task))
        self._open += task.files
        while len(self._open) >= self._step:
            self._write(self._open[: self._step])
            del self._open[: self._step]
        self._sizes.append(sum(span.end - span.start for span in task.files))
        self._ends.append((self._ends[-1] if self._ends else 0) + len(task.files))

    def close(self) -> None:
        """Say that there are no more tasks."""
        if self._open:
            self._write(self._open)
            self._open = []

    def _write(self, spans: Sequence[FileSpan]) -> None:
        data = _columns(spans)
        self.checksum = zlib.crc32(data, self.checksum)
        self._blobs.add(_frame(data))

    def spans(self, first: int, end: int) -> Iterator[FileSpan]:
        """The parts of files from one place of the plan to another."""
        for number in range(first // self._step, -(-end // self._step)):
            kept, found = self._last
            if kept != number:
                found = _spans(self._blobs.read(number))
                self._last = number, found
            start = number * self._step
            yield from found[max(0, first - start) : end - start]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> Task: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Task]: ...
    def __getitem__(self, place: int | slice) -> Task | Sequence[Task]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        number = range(len(self))[place]
        first = self._ends[number - 1] if number else 0
        end, size = self._ends[number], self._sizes[number]
        return PlannedTask(number, first, end, size, self._step, self.checksum, self)

    def put(self, store: Store, claim: Claim, part: tuple[int, int] | None = None) -> None:
        """Write the plan to the target.

        Args:
            store: The target.
            claim: By which the packer may write there.
            part: Of a part of a pack: its number, and how many there are. All parts write the same objects:
                each begins with its share, and leaves out what is there. None: all are written.

        Raises:
            CommitError: It is another packer's turn at the target.
            StorageError: An object cannot be written.
        """
        count = len(self._blobs)
        if part is not None:
            share = range(count * part[0] // part[1], count * (part[0] + 1) // part[1])
            self._put(store, claim, self._lacking(store, claim, share))
        lacking = range(count) if part is None else self._lacking(store, claim, range(count))
        self._put(store, claim, lacking)

    def _name(self, claim: Claim, number: int) -> str:
        return object_name(claim.plan, self.checksum, number)

    def _head(self, claim: Claim, number: int) -> bytes:
        return _frame(msgspec.msgpack.encode(_Head(claim.plan, number)))

    def _lacking(self, store: Store, claim: Claim, numbers: Iterable[int]) -> list[int]:
        there = {f"{FOLDER}/{entry.path}": entry.size for entry in _listed(store)}
        return [
            number
            for number in numbers
            if there.get(self._name(claim, number))
            != len(self._head(claim, number)) + self._blobs.size(number)
        ]

    def _put(self, store: Store, claim: Claim, numbers: Sequence[int]) -> None:
        def put(number: int) -> None:
            store.write(self._name(claim, number), self._head(claim, number), self._blobs.read(number))

        with ThreadPoolExecutor(_AT_ONCE, "shardstream-plan") as pool:
            for start in range(0, len(numbers), _CHECKED):
                claim.check(store)
                for _ in pool.map(put, numbers[start : start + _CHECKED]):
                    pass


def _listed(store: Store) -> Sequence[Any]:
    try:
        return store.entries(FOLDER)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return ()
        raise


def clear_plan(store: Store, plans: Iterable[str] | None, claim: Claim | None = None) -> None:
    """Delete plans in a target.

    Args:
        store: The target.
        plans: The identities of the packs whose plans are deleted. None: those of all packs.
        claim: Looked at behind the listing, which takes its time: what was listed is not of the next packer.
    """
    begins = None if plans is None else tuple(map(_begin, plans))
    names = [entry.path for entry in _listed(store)]
    if claim is not None and names:
        claim.check(store, now=True)
    store.delete_many([f"{FOLDER}/{name}" for name in names if begins is None or name.startswith(begins)])
    local = store.local_path(FOLDER)
    if local is not None and os.path.isdir(local):
        store.clear_temporary(FOLDER)  # of killed packers
        with contextlib.suppress(OSError):  # it holds the plan of another pack
            os.rmdir(local)


def planned(tasks: Iterable[Task]) -> Sequence[Task]:
    """All tasks of a plan: a list if they read at most `HELD` parts of files, else a `StoredPlan`.

    Args:
        tasks: The tasks in the order of their numbers. Those of a kind of their own, which may have more than
            parts of files, are a list in any case. So are those of files whose URLs have secrets, such as
            signatures: these are not written into the target.
    """
    few: list[Task] = []
    count, left = 0, iter(tasks)
    for task in left:
        if not _is_stored(task, len(few)):
            return [*few, task, *left]
        few.append(task)
        count += len(task.files)
        if count > HELD:
            break
    else:
        return few
    found = StoredPlan()
    for task in chain(few, left):
        if not _is_stored(task, len(found)):
            found.close()
            return [*(Task(each.number, each.files) for each in found), task, *left]
        found.add(task)
    found.close()
    return found


def _is_stored(task: Task, number: int) -> bool:
    return (
        type(task) is Task and task.number == number and not any(_has_secret(span.url) for span in task.files)
    )


def _has_secret(url: str) -> bool:
    # Nearly all have none of these characters, and they are not looked at further.
    return "://" in url and ("?" in url or "@" in url or "#" in url) and url_has_secret(url)


_kept: dict[tuple[str, str, int, int], list[FileSpan]] = {}
_lock = threading.Lock()


def whole(task: Task, dest: str, storage_options: Options, claim: Claim | None) -> Task:
    """A task with the parts of files that it reads.

    Args:
        task: The task.
        dest: The target.
        storage_options: Options for its store.
        claim: By which the worker may write there. None: the plan is here.

    Raises:
        CommitError: An object is damaged, and it is another packer's turn at the target.
        CorruptionError: An object of the plan is damaged, or belongs to another plan. It was deleted, so that
            the next process that plans makes it anew.
        StorageError: One is missing, or cannot be read.
    """
    if not isinstance(task, PlannedTask):
        return task
    if task.is_here:
        return Task(task.number, task.files)
    assert claim is not None  # a packer that sends tasks to others has one
    spans: list[FileSpan] = []
    for number in range(task.first // task.step, -(-task.end // task.step)):
        start = number * task.step
        found = _object(dest, storage_options, claim, task.checksum, number, min(task.step, task.end - start))
        spans += found[max(0, task.first - start) : task.end - start]
    return Task(task.number, tuple(spans))


def _object(
    dest: str, storage_options: Options, claim: Claim, checksum: int, number: int, least: int
) -> list[FileSpan]:
    key = (dest, claim.plan, checksum, number)
    with _lock:
        found = _kept.get(key)
    if found is None or len(found) < least:
        store, name = Store.open(dest, storage_options), object_name(claim.plan, checksum, number)
        try:
            data = store.read(name)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                what = "is missing, an object of the plan of this pack"
                raise StorageError(f"{store.where(name)} {what}; {_AGAIN}") from error
            raise
        try:
            found = _parsed(data, _Head(claim.plan, number), least)
        except (zstandard.ZstdError, msgspec.DecodeError, ValueError) as error:
            _remove(store, claim, name, data)
            raise CorruptionError(f"{store.where(name)} is damaged: {error}; {_AGAIN}") from error
        with _lock:
            while len(_kept) >= _KEPT:
                del _kept[next(iter(_kept))]
            _kept[key] = found
    return found


def _parsed(data: bytes, head: _Head, least: int) -> list[FileSpan]:
    first = zstandard.ZstdDecompressor().decompressobj()
    if msgspec.msgpack.decode(first.decompress(data), type=_Head) != head:
        raise ValueError("it belongs to another plan, or to another place in it")
    found = _spans(first.unused_data)
    if len(found) < least:
        raise ValueError("it is too short")
    return found


def _remove(store: Store, claim: Claim, name: str, damaged: bytes) -> None:
    """Delete a damaged object, for parts make anew only what is not there."""
    claim.check(store, now=True)
    with contextlib.suppress(StorageError):  # what is wrong with it is the error to tell
        if store.read(name) == damaged:  # else another process has just made it anew
            store.delete(name)
