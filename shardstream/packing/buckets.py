"""What both ways to shuffle share: draws of buckets, the form of samples between the passes, permutations.

`disk_shuffle` says why the result is one uniform permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shardstream.format.columns import ColumnValue
from shardstream.packing.sources import Sample

__all__ = ["Draws", "Spilled", "permuted", "split", "write_grouped"]

_FLUSH_LIMIT = 128 << 20  # bytes of samples in memory before a task writes them out
_DRAWS = 4096


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
