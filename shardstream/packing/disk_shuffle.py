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
from collections.abc import Iterable, Iterator, Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from shardstream.errors import StorageError
from shardstream.packing.buckets import Draws, Spilled, permuted, split, write_grouped
from shardstream.packing.sources import Sample
from shardstream.storage.local.reads import read_exactly

FINE = 4096  # buckets of pass one if the size of the input is not known
# The head of an array of whole numbers as numpy stores it, version 1.0 of its format. Source: numpy,
# numpy/lib/format.py.
_MAGIC = b"\x93NUMPY\x01\x00"
_HEAD = 128  # bytes, of which numpy needs fewer for an array of two dimensions
_SHAPE = re.compile(rb"'descr': '<i8', 'fortran_order': False, 'shape': \((\d+), (\d+)\)")


def _names(folder: str, task: int) -> tuple[str, str]:
    stem = os.path.join(folder, f"spill-{task:06d}")
    return f"{stem}.bin", f"{stem}.npy"


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
            # A worker of a killed packer may still run. Each has a file of its own, until it is complete.
            self._open_name = f"{self._data_name.removesuffix('.bin')}.{os.urandom(8).hex()}.bin"
            self._file = open(self._open_name, "wb")  # noqa: SIM115 - until `close`

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
            os.replace(self._open_name, self._data_name)
            self._write_bounds()
        return self.written

    def _write_bounds(self) -> None:
        name = f"{self._open_name}.npy"
        with open(name, "wb") as file:
            np.save(file, np.stack(self._bounds))
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, self._bounds_name)

    def abort(self) -> None:
        """Close the file, and delete it if it is not complete."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._open_name)

    def _flush(self, records: Mapping[int, list[bytes]]) -> None:
        with self._explained():
            self._bounds.append(write_grouped(self._file, records, self._buckets))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"writing {self._data_name} for the shuffle: {error.strerror}") from error


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
    try:
        yield from permuted(records, seed, bucket)
    except msgspec.MsgspecError as error:
        raise StorageError(
            f"reading {folder} for the shuffle: a sample is damaged: {error}; pack again without --resume"
        ) from error


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
