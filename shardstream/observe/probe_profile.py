"""The profile that a probe writes: what a store, a disk and the cores of a machine can do, with units."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from shardstream.errors import CorruptionError, StorageError
from shardstream.storage.store import Store

__all__ = [
    "VERSION", "Disk", "Latency", "Level", "OpenLoop", "Profile", "Rates", "StoreRates", "Sweep", "knee_of",
    "percentile",
]  # fmt: skip

VERSION = 2
_MOST = 16 << 20  # bytes of a profile
_NEAR = 0.9  # the knee has this part of the best rate, or more
UNITS = {
    "ms": "milliseconds", "bytes_per_second": "bytes per second", "per_second": "requests per second",
    "cpu_seconds_per_gb": "seconds of one core per 10^9 bytes",
    "decompress_bytes_per_second": "bytes after decompression per second of one core",
    "seconds_per_sample": "seconds of one core per sample",
}  # fmt: skip


class Latency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests of one size, one after the other.

    Args:
        bytes: The size of a range.
        requests: How many were sent. A percentile of few requests is one of the slowest of them.
        p50_ms, p95_ms, p99_ms: Percentiles of the time until the last byte, in milliseconds.
    """

    bytes: int
    requests: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A closed loop: so many requests are always on their way.

    Args:
        concurrency: How many.
        requests: How many were counted.
        per_second: Requests per second.
        bytes_per_second: Bytes per second.
        p50_ms, p99_ms: Percentiles of the time of a request, in milliseconds.
        cpu_seconds_per_gb: Seconds of one core per 10^9 bytes, of this process.
        machine_seconds_per_gb: The same of all processes, less what ran before the probe. It counts for a
            store that runs on this machine.
    """

    concurrency: int
    requests: int
    per_second: float
    bytes_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_seconds_per_gb: float
    machine_seconds_per_gb: float


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Closed loops of doubling concurrency.

    Args:
        bytes: The size of a range.
        levels: Each concurrency.
        knee: The least concurrency that has 90 % of the best rate.
    """

    bytes: int
    levels: tuple[Level, ...]
    knee: int

    @property
    def best(self) -> Level:
        """The level with the most bytes per second."""
        return max(self.levels, key=lambda level: level.bytes_per_second)

    def at(self, concurrency: float) -> float:
        """Bytes per second at a concurrency: between two levels in proportion, beyond the last its rate."""
        before: Level | None = None
        for level in self.levels:
            if level.concurrency >= concurrency:
                if before is None:
                    return level.bytes_per_second * concurrency / level.concurrency
                part = (concurrency - before.concurrency) / (level.concurrency - before.concurrency)
                return before.bytes_per_second + part * (level.bytes_per_second - before.bytes_per_second)
            before = level
        return self.levels[-1].bytes_per_second


class OpenLoop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests that arrive by chance at a fixed mean rate (Poisson), whether or not others are done.

    A closed loop sends nothing while the store is slow, and so hides how long requests would have waited.

    Args:
        share: The rate, as a part of the closed loop's rate at the knee.
        bytes: The size of a range.
        requests: How many arrived.
        per_second: Arrivals per second.
        p50_ms, p95_ms, p99_ms: Percentiles of the time from arrival to last byte, in milliseconds.
    """

    share: float
    bytes: int
    requests: int
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class StoreRates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the store does.

    Args:
        backend: How it is reached, such as "obstore-s3", or "local".
        objects, object_bytes: How many objects were read from, and their sizes added up.
        beside: Whether the store runs on this machine, so that its processor time is taken from the job.
        latencies: One request at a time, by size.
        base_ms: Milliseconds of a request without its bytes, from the latencies.
        stream_bytes_per_second: Bytes per second of one request after that time.
        throughput: Closed loops of large ranges.
        small: Closed loops of small ranges; its `per_second` are the IOPS.
        open_loops: The same ranges as `throughput`, by arrival rate.
        retries: Tries after the first one of a request.
    """

    backend: str
    objects: int
    object_bytes: int
    beside: bool
    latencies: tuple[Latency, ...]
    base_ms: float
    stream_bytes_per_second: float
    throughput: Sweep | None
    small: Sweep | None
    open_loops: tuple[OpenLoop, ...]
    retries: int


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the disk of a cache does; the folder is not named, since it may be private.

    Args:
        file_bytes: The size of the file that was written and read.
        write_bytes_per_second: Bytes per second, with fsync at the end.
        latencies: Cold reads, one at a time, by size.
        throughput: Closed loops of cold reads.
    """

    file_bytes: int
    write_bytes_per_second: float
    latencies: tuple[Latency, ...]
    throughput: Sweep | None


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one core does with the dataset's own frames and samples.

    Args:
        work: The batch, seq_len, image_size, decode, seed, lanes and window that were measured.
        codec: Of the frames: "zstd", "none", or of an adopted archive.
        decompress_bytes_per_second: Bytes after decompression per second of a core; 0 without compression.
        open_seconds: Seconds of a core until the first batch, in each process: opening, connections, threads.
        cold_seconds_per_sample: Seconds of a core for all that a process does for a sample in the first
            epoch after that: requests, checks, decompression, decoding, batches.
        seconds_per_sample: The same without requests, from memory.
        serial_seconds_per_sample: The part of the cold seconds that one process does one after the other,
            since Python runs one thread at a time: all but decompression and decoders.
        consumer_seconds_per_sample: The part of it in the thread of the training loop, which no other thread
            takes over.
        busy_cores: How many cores of the machine were busy, on the average, while the cold seconds were
            measured.
        samples: How many samples were measured.
        stored_bytes, raw_bytes: Of a sample, on the average: in the store, and after decompression.
        range_bytes: The mean size of a request that the loader sent; 0 if the data is local.
    """

    work: dict[str, int | bool | None]
    codec: str
    decompress_bytes_per_second: float
    open_seconds: float
    cold_seconds_per_sample: float
    seconds_per_sample: float
    serial_seconds_per_sample: float
    consumer_seconds_per_sample: float
    busy_cores: float
    samples: int
    stored_bytes: float
    raw_bytes: float
    range_bytes: int


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a probe has measured.

    Args:
        version: Of this form.
        shardstream: The version of the package.
        host: The name of the machine.
        date: When it was measured, UTC, ISO 8601.
        cores: How many cores this process may use.
        free_cores: How many of them it got when all of its threads were busy: fewer if other programs run, or
            if a container has a quota.
        free_core: What one busy thread got of a core.
        shared_work: What a core does in a second while all cores are busy, of what one does alone, at most 1.
            Cores may share caches, memory and even what computes: one with two threads counts as two.
        url: What was read, without credentials.
        seconds: How long the probe took.
        read_bytes: The bytes that came from the store.
        disk_bytes: The bytes that were written to and read from the disk of the cache.
        cut: What was left out or ended early, and why.
        store: Of the store.
        disk: Of the disk of the cache; None if no cache was named.
        rates: Of the cores; None if the URL is no dataset.
        units: What the ends of the names mean.
    """

    version: int
    shardstream: str
    host: str
    date: str
    cores: int
    free_cores: float
    free_core: float
    shared_work: float
    url: str
    seconds: float
    read_bytes: int
    disk_bytes: int
    cut: tuple[str, ...]
    store: StoreRates
    disk: Disk | None = None
    rates: Rates | None = None
    units: dict[str, str] = msgspec.field(default_factory=lambda: dict(UNITS))

    def to_bytes(self) -> bytes:
        """The profile as JSON, for a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    def as_dict(self) -> dict[str, Any]:
        """The profile as dicts, lists and numbers."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def save(self, path: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> None:
        """Write the profile to a local path or a URL, as a whole.

        Raises:
            StorageError: It cannot be written.
        """
        store, name = _place(os.fspath(path), storage_options)
        store.write(name, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> Profile:
        """Read a profile.

        Raises:
            StorageError: There is no such file, or it cannot be read.
            CorruptionError: It is no profile, or has another version.
        """
        store, name = _place(os.fspath(path), storage_options)
        data, where = store.read(name, _MOST), store.where(name)
        try:
            version = msgspec.json.decode(data, type=_Version).version
            if version != VERSION:
                raise CorruptionError(f"{where}: a profile of version {version}, not {VERSION}: probe again")
            return msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise CorruptionError(f"{where}: no profile of `shardstream probe` ({error})") from error


class _Version(msgspec.Struct):
    version: int


def _place(path: str, storage_options: dict[str, Any] | None) -> tuple[Store, str]:
    folder, _, name = path.rpartition("/")
    if not name:
        raise StorageError(f"{path}: this is a folder; name the file of the profile")
    return Store.open(folder or ("/" if path.startswith("/") else "."), storage_options), name


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank); of few values one of the largest."""
    rank = max(0, min(len(sorted_values) - 1, -int(-share * len(sorted_values) // 1) - 1))
    return sorted_values[rank]


def knee_of(levels: Sequence[Level]) -> int:
    """The least concurrency with 90 % of the best rate."""
    best = max(level.bytes_per_second for level in levels)
    return next(level.concurrency for level in levels if level.bytes_per_second >= _NEAR * best)
