"""The global shuffle of a corpus that is larger than memory, in two passes over a local disk.

The first pass puts each sample into a random bucket. The second pass permutes each bucket in memory, and
writes it as a shard. The random numbers depend only on (seed, task, sample) and on (seed, bucket). So the
result is one uniform permutation, which does not depend on the number of workers (Sanders 1998, "Random
Permutations on Distributed, External and Hierarchical Memory").
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from shardstream.errors import StorageError
from shardstream.format.columns import ColumnValue
from shardstream.packing.sources import Sample

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


def _names(folder: str, task: int) -> tuple[str, str]:
    stem = os.path.join(folder, f"spill-{task:06d}")
    return f"{stem}.bin", f"{stem}.npy"


def scatter(
    samples: Iterable[Sample], folder: str, seed: int, task: int, buckets: int, shard_size: int
) -> int:
    """Pass one: write the samples of one task, grouped by bucket.

    Args:
        samples: The samples of the task.
        folder: A folder on a local disk.
        seed: The seed of the shuffle.
        task: The number of the task.
        buckets: How many buckets there are, less than 2**31.
        shard_size: Bytes. If it is more than 128 MiB, so many bytes of samples are collected before a write.

    Returns:
        How many samples there were.

    Raises:
        StorageError: The folder cannot be written.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    data_name, bounds_name = _names(folder, task)
    generator = _words(seed, 1, task)
    encoder = msgspec.msgpack.Encoder()
    records: dict[int, list[bytes]] = {}
    bounds: list[npt.NDArray[np.int64]] = []
    size = count = 0
    draws: list[int] = []
    try:
        with open(data_name, "wb") as file:

            def flush() -> None:
                at = np.zeros(buckets + 1, np.int64)
                at[0] = file.tell()
                for bucket in range(buckets):
                    block = b"".join(records.get(bucket, ()))
                    file.write(block)
                    at[bucket + 1] = at[bucket] + len(block)
                bounds.append(at)
                records.clear()

            for sample in samples:
                if not draws:
                    draws = _below(generator, _DRAWS, buckets).tolist()
                record = encoder.encode(
                    (
                        sample.key,
                        sample.fields,
                        sample.where,
                        *([dict(sample.columns)] if sample.columns else ()),
                    )
                )
                records.setdefault(draws.pop(), []).append(len(record).to_bytes(8, "little") + record)
                size += len(record)
                count += 1
                if size >= max(_FLUSH_LIMIT, shard_size):
                    flush()
                    size = 0
            flush()
            file.flush()
            os.fsync(file.fileno())
        np.save(bounds_name, np.stack(bounds))
    except OSError as error:
        raise StorageError(f"writing {data_name} for the shuffle: {error.strerror}") from error
    return count


def gather(folder: str, seed: int, bucket: int, tasks: int) -> Iterator[Sample]:
    """Pass two: the samples of one bucket, permuted.

    Args:
        folder: The folder of pass one.
        seed: The seed of the shuffle.
        bucket: The number of the bucket.
        tasks: How many tasks pass one had.

    Raises:
        StorageError: The folder cannot be read, or a file in it is damaged.
    """
    records: list[bytes] = []
    try:
        for task in range(tasks):
            data_name, bounds_name = _names(folder, task)
            bounds = np.load(bounds_name, allow_pickle=False)
            with open(data_name, "rb") as file:
                for begin, end in bounds[:, bucket : bucket + 2].tolist():
                    file.seek(begin)
                    block = file.read(end - begin)
                    if len(block) != end - begin:
                        raise ValueError(f"{data_name} is cut off")
                    records += _split(block)
    except (OSError, ValueError, EOFError) as error:
        raise StorageError(
            f"reading {folder} for the shuffle: {error}; pack again without --resume"
        ) from error
    decoder = msgspec.msgpack.Decoder(_Record)
    order = np.argsort(_words(seed, 2, bucket).random_raw(len(records)), kind="stable")
    for number in order.tolist():
        found = decoder.decode(records[number])
        yield Sample(found.key, found.fields, found.where, columns=found.columns)


def _split(block: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(block):
        size = int.from_bytes(block[at : at + 8], "little")
        yield block[at + 8 : at + 8 + size]
        at += 8 + size
