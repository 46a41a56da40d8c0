"""The global shuffle of a corpus that is larger than memory, in two passes over a local disk.

The first pass puts each sample into a random bucket. The second pass permutes each bucket in memory, and
writes it as a shard. The random numbers depend only on (seed, task, sample) and on (seed, bucket). So the
result is one uniform permutation, which does not depend on the number of workers (Sanders 1998, "Random
Permutations on Distributed, External and Hierarchical Memory").

Each task of the second pass opens the files of all tasks of the first one. If there are very many of both, or
if the tasks run on several machines, `store_shuffle` does the same with fewer and larger reads.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shardstream.errors import StorageError
from shardstream.format.columns import ColumnValue
from shardstream.packing.sources import Sample
from shardstream.storage.local.reads import read_exactly

_FLUSH_LIMIT = 128 << 20  # bytes of samples in memory before a task writes them out
_DRAWS = 4096
FINE = 4096  # buckets of pass one if the size of the input is not known
# The head of an array of whole numbers as numpy stores it, version 1.0 of its format. Source: numpy,
# numpy/lib/format.py.
_MAGIC = b"\x93NUMPY\x01\x00"
_HEAD = 128  # bytes, of which numpy needs fewer for an array of two dimensions
_SHAPE = re.compile(rb"'descr': '<i8', 'fortran_order': False, 'shape': \((\d+), (\d+)\)")


class _Record(msgspec.Struct, array_like=True):
    """A sample as it is spilled. The last part is missing if it has no columns."""

    key: str
    fields: dict[str, bytes]
    where: str
    columns: dict[str, ColumnValue] = {}


def _words(seed: int, *path: int) -> np.random.Philox:
    # Raw words of a counter-based generator are the same on every platform and in every version of numpy.
    return np.random.Philox(np.random.SeedSequence((seed, *path)))


def _below(generator: np.random.Philox, count: int, bound: int) -> npt.NDArray[np.int64]:
    # 32 random bits, scaled by a bound below 2**31. The bias is below bound / 2**33.
    words = generator.random_raw(count) >> np.uint64(32)
    return ((words * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def _names(folder: str, task: int) -> tuple[str, str]:
    stem = os.path.join(folder, f"spill-{task:06d}")
    return f"{stem}.bin", f"{stem}.npy"


class Spilled(NamedTuple):
    """What pass one has written.

    Args:
        samples: How many samples.
        bytes: The bytes of their fields.
    """

    samples: int
    bytes: int


class Draws:
    """Draws a bucket for each sample of one task, and holds the samples until there are many.

    Args:
        seed: The seed of the shuffle.
        task: The number of the task.
        buckets: How many buckets there are, less than 2**31.
        shard_size: Bytes. If it is more than 128 MiB, so many bytes of samples are collected before a write.
        flush: Called with the samples so far, encoded, by bucket, in the order in which they came.
    """

    def __init__(
        self,
        seed: int,
        task: int,
        buckets: int,
        shard_size: int,
        flush: Callable[[dict[int, list[bytes]]], None],
    ) -> None:
        self._buckets, self._limit = buckets, max(_FLUSH_LIMIT, shard_size)
        self._write = flush
        self._generator = _words(seed, 1, task)
        self._encode = msgspec.msgpack.Encoder().encode
        self._records: dict[int, list[bytes]] = {}
        self._draws: list[int] = []
        self._waiting = 0  # bytes in memory
        self.written = Spilled(0, 0)

    def add(self, sample: Sample) -> None:
        """Put a sample into its bucket."""
        if not self._draws:
            self._draws = _below(self._generator, _DRAWS, self._buckets).tolist()
        columns = [dict(sample.columns)] if sample.columns else []
        record = self._encode((sample.key, sample.fields, sample.where, *columns))
        self._records.setdefault(self._draws.pop(), []).append(len(record).to_bytes(8, "little") + record)
        self._waiting += len(record)
        count, size = self.written
        self.written = Spilled(count + 1, size + sum(map(len, sample.fields.values())))
        if self._waiting >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write the samples that are held."""
        self._write(self._records)
        self._records.clear()
        self._waiting = 0


class Scatter:
    """Pass one: writes the samples of one task, grouped by bucket.

    Args:
        folder: A folder on a local disk.
        seed, task, buckets, shard_size: See `Draws`.

    Raises:
        StorageError: The folder cannot be written. The methods raise it, too.
    """

    def __init__(self, folder: str, seed: int, task: int, buckets: int, shard_size: int) -> None:
        self._data_name, self._bounds_name = _names(folder, task)
        self._draws = Draws(seed, task, buckets, shard_size, self._flush)
        self._buckets = buckets
        self._bounds: list[npt.NDArray[np.int64]] = []
        self.add = self._draws.add
        with self._explained():
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._file = open(self._data_name, "wb")  # noqa: SIM115 - until `close`

    @property
    def written(self) -> Spilled:
        """What was added so far."""
        return self._draws.written

    def close(self) -> Spilled:
        """Write what is left, so that it survives a crash; returns what was written."""
        with self._explained(), self._file:
            self._draws.flush()
            self._file.flush()
            os.fsync(self._file.fileno())
            np.save(self._bounds_name, np.stack(self._bounds))
        return self.written

    def abort(self) -> None:
        """Close the file, whose content nobody needs."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _flush(self, records: Mapping[int, list[bytes]]) -> None:
        with self._explained():
            self._bounds.append(write_grouped(self._file, records, self._buckets))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"writing {self._data_name} for the shuffle: {error.strerror}") from error


def write_grouped(
    file: IO[bytes], records: Mapping[int, Sequence[bytes | memoryview]], count: int
) -> npt.NDArray[np.int64]:
    """Write records at the end of a file, grouped.

    Args:
        file: The file.
        records: The records of each group that has some, by its number.
        count: How many groups there are.

    Returns:
        Where each group begins in the file, and where the last one ends, [count + 1].
    """
    sizes = np.zeros(count + 1, np.int64)
    sizes[0] = file.tell()
    for group in sorted(records):
        block = b"".join(records[group])
        file.write(block)
        sizes[group + 1] = len(block)
    return np.cumsum(sizes)


def scatter(
    samples: Iterable[Sample], folder: str, seed: int, task: int, buckets: int, shard_size: int
) -> Spilled:
    """Pass one over the samples of one task; the other arguments are those of `Scatter`."""
    spill = Scatter(folder, seed, task, buckets, shard_size)
    try:
        for sample in samples:
            spill.add(sample)
        return spill.close()
    finally:
        spill.abort()


def joined(size: int, shard_size: int) -> list[tuple[int, int]]:
    """For input whose size was not known: which of `FINE` buckets pass two takes together, as [first, end).

    They are consecutive, and about a shard large together. Any such choice gives a uniform permutation.

    Args:
        size: The bytes of all samples.
        shard_size: The bytes of a shard.
    """
    count = min(FINE, max(1, -(-size // shard_size)))
    return [(FINE * number // count, FINE * (number + 1) // count) for number in range(count)]


def gather(
    folder: str, seed: int, bucket: int, tasks: int, span: tuple[int, int] | None = None, first_task: int = 0
) -> Iterator[Sample]:
    """Pass two: the samples of one bucket, permuted.

    Args:
        folder: The folder of pass one.
        seed: The seed of the shuffle.
        bucket: The number of the bucket.
        tasks: How many tasks pass one had.
        span: The first of the buckets of pass one that this bucket is made of, and the one behind the last.
            None: it is one of them.
        first_task: The number of the first of these tasks.

    Raises:
        StorageError: The folder cannot be read, or a file in it is damaged.
    """
    records: list[bytes] = []
    first, end = (bucket, bucket + 1) if span is None else span
    try:
        for task in range(first_task, first_task + tasks):
            data_name, bounds_name = _names(folder, task)
            with open(data_name, "rb", buffering=0) as file:
                for start, stop in _bounds(bounds_name, first, end):
                    block = os.pread(file.fileno(), stop - start, start)
                    if len(block) != stop - start:
                        block = bytes(read_exactly(file.fileno(), start, stop - start, data_name))
                    records += split(block)
    except (OSError, ValueError, StorageError) as error:
        raise StorageError(
            f"reading {folder} for the shuffle: {error}; pack again without --resume"
        ) from error
    yield from permuted(records, seed, bucket)


def _bounds(name: str, first: int, end: int) -> list[tuple[int, int]]:
    """Where buckets `first` to `end` begin and end, for each write of a task.

    Only these numbers are read, not the whole array: it has one for each bucket of the corpus.
    """
    with open(name, "rb", buffering=0) as file:
        head = os.pread(file.fileno(), _HEAD, 0)
        found = _SHAPE.search(head)
        if not head.startswith(_MAGIC) or found is None:
            raise ValueError(f"{name} is damaged")
        writes, columns = map(int, found.groups())
        begin = len(_MAGIC) + 2 + int.from_bytes(head[len(_MAGIC) : len(_MAGIC) + 2], "little")
        if os.fstat(file.fileno()).st_size != begin + 8 * writes * columns or end >= columns:
            raise ValueError(f"{name} is cut off")
        bounds = []
        for row in range(begin, begin + 8 * writes * columns, 8 * columns):
            raw = os.pread(file.fileno(), 8 * (end - first + 1), row + 8 * first)
            bounds.append((int.from_bytes(raw[:8], "little"), int.from_bytes(raw[-8:], "little")))
        if any(start < 0 or start > stop for start, stop in bounds):
            raise ValueError(f"{name} is damaged")
        return bounds


def permuted(records: Sequence[bytes | memoryview], seed: int, bucket: int) -> Iterator[Sample]:
    """The samples of one bucket in their final order.

    Args:
        records: The encoded samples in the order of their tasks, as `split` gives them.
        seed: The seed of the shuffle.
        bucket: The number of the bucket.
    """
    decoder = msgspec.msgpack.Decoder(_Record)
    order = np.argsort(_words(seed, 2, bucket).random_raw(len(records)), kind="stable")
    for number in order.tolist():
        found = decoder.decode(records[number])
        yield Sample(found.key, found.fields, found.where, columns=found.columns)


def split(block: bytes) -> Iterator[bytes]:
    """The encoded samples of a block."""
    at = 0
    while at < len(block):
        size = int.from_bytes(block[at : at + 8], "little")
        yield block[at + 8 : at + 8 + size]
        at += 8 + size
