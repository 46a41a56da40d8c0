"""The global shuffle of a corpus larger than memory, in two passes over local disk.

Pass one sends each sample to a bucket drawn uniformly; pass two permutes each bucket in memory and
writes it as a shard. Both draws are pure functions of (seed, task, sample) and (seed, bucket), so
the outcome is one uniform permutation whatever the number of workers (Sanders 1998, "Random
Permutations on Distributed, External and Hierarchical Memory").
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from shardstream.errors import StorageError
from shardstream.pack.sources import Sample

_FLUSH_LIMIT = 128 << 20  # bytes of samples that a task holds before it writes them out
_DRAWS = 4096


def _words(seed: int, *path: int) -> np.random.Philox:
    # Raw words of a counter-based generator: the same on every platform and version of numpy.
    return np.random.Philox(np.random.SeedSequence((seed, *path)))


def _below(generator: np.random.Philox, count: int, bound: int) -> npt.NDArray[np.int64]:
    # 32 random bits scaled by a bound < 2**31; the bias is below 2**-1 * bound / 2**32.
    words = generator.random_raw(count) >> np.uint64(32)
    return ((words * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def _names(folder: str, task: int) -> tuple[str, str]:
    stem = os.path.join(folder, f"spill-{task:06d}")
    return f"{stem}.bin", f"{stem}.npy"


def scatter(
    samples: Iterable[Sample], folder: str, seed: int, task: int, buckets: int, shard_size: int
) -> int:
    """Write the samples of one task grouped by bucket; returns how many there were."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    data_name, bounds_name = _names(folder, task)
    generator = _words(seed, 1, task)
    encoder = msgspec.msgpack.Encoder()
    held: dict[int, list[bytes]] = {}
    bounds: list[npt.NDArray[np.int64]] = []
    size = count = 0
    draws: list[int] = []
    try:
        with open(data_name, "wb") as file:

            def flush() -> None:
                at = np.zeros(buckets + 1, np.int64)
                at[0] = file.tell()
                for bucket in range(buckets):
                    block = b"".join(held.get(bucket, ()))
                    file.write(block)
                    at[bucket + 1] = at[bucket] + len(block)
                bounds.append(at)
                held.clear()

            for sample in samples:
                if not draws:
                    draws = _below(generator, _DRAWS, buckets).tolist()
                record = encoder.encode((sample.key, sample.fields, sample.where))
                held.setdefault(draws.pop(), []).append(len(record).to_bytes(8, "little") + record)
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
    """The samples of one bucket, permuted."""
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
    decoder = msgspec.msgpack.Decoder(tuple[str, dict[str, bytes], str])
    order = np.argsort(_words(seed, 2, bucket).random_raw(len(records)), kind="stable")
    for number in order.tolist():
        yield Sample(*decoder.decode(records[number]))


def _split(block: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(block):
        size = int.from_bytes(block[at : at + 8], "little")
        yield block[at + 8 : at + 8 + size]
        at += 8 + size
