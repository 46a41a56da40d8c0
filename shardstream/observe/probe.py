"""probe(): what a store, a disk and the cores of this machine can do, measured in a minute."""

from __future__ import annotations

import datetime
import os
import socket
from typing import Any
from urllib.parse import urlsplit

from shardstream.cores import cores
from shardstream.errors import OptionError
from shardstream.format.sizes import parse_size
from shardstream.observe.bench_work import Work
from shardstream.observe.probe_disk import measure_disk
from shardstream.observe.probe_limits import Limits
from shardstream.observe.probe_load import busy_cores, calibrated, latency, open_loop, sweep
from shardstream.observe.probe_profile import VERSION, Latency, Profile, StoreRates
from shardstream.observe.probe_ranges import Object, Ranges, objects_below, unhedged
from shardstream.observe.probe_rates import measure_rates
from shardstream.storage.store import local_path_of, redact
from shardstream.version import __version__

__all__ = ["probe"]

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20)
_SMALL, _LARGE = 4 << 10, 1 << 20  # bytes of the ranges of closed loops
_MOST = 64  # requests on their way: a loader has no more
_SHARES = (0.5, 0.9)  # of the knee's rate, for open loops
# Parts of all seconds and bytes. If there is a disk, the others share what it leaves of the bytes.
_RATES, _LATENCIES, _SWEEP = (0.3, 0.25), (0.15, 0.1), (0.2, 0.45)
_IOPS, _OPEN, _DISK = (0.1, 0.05), (0.1, 0.1), (0.13, 0.3)
# Seconds in which threads are busy to see how many cores they get: at least so many, and this part of all.
_CALIBRATION, _CALIBRATION_SHARE = 2.4, 0.1
_IDLE = 0.2  # seconds in which other processes are watched


def probe(
    url: str | os.PathLike[str],
    cache: str | os.PathLike[str] | None = None,
    *,
    batch: int = 32,
    seq_len: int | None = None,
    image_size: int | None = None,
    decode: bool = True,
    seed: int | None = 0,
    lanes: int | None = None,
    window: int | None = None,
    seconds: float = 60.0,
    most: str | int = "1GiB",
    storage_options: dict[str, Any] | None = None,
) -> Profile:
    """Measure what limits a job that reads here.

    Ranges of the objects at `url` are read by the same client that the loader uses, with its retries and
    without its second requests. Of a dataset, some batches are also made from memory. At least a handful of
    requests is sent for each figure, so a very slow store takes somewhat longer than `seconds`. A store that
    does not answer is given up after `seconds`, or after 10 if that is more.

    Args:
        url: A dataset, or any folder with objects; a URL or a local path. Local files are read cold.
        cache: The folder of a cache: its disk is measured, too. It is made if it is missing.
        batch: Samples of a batch.
        seq_len: Of a dataset of tokens; 2048 by default.
        image_size: Crop images to this size, as `images.Train(size)` does. By default they stay whole.
        decode: Whether fields are decoded.
        seed, lanes, window: Of the job's Shuffle. seed=None: the natural order.
        seconds: How long it takes, at least 1.
        most: Bytes that are read from the store, and written to and read from the disk, together.
        storage_options: Of the store.

    Returns:
        The profile. Its `cut` says what was left out for the limits.

    Raises:
        OptionError: An argument cannot be.
        StorageError: The store does not answer, or the cache cannot be written to.
        SourceError: There is nothing to read.
        CorruptionError: The dataset is damaged.
    """
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 1 <= seconds < float("inf"):
        raise OptionError(f"seconds={seconds!r} must be a number, at least 1")
    if cache is not None and "://" in os.fspath(cache):
        raise OptionError("cache is the folder of a cache on a local disk, such as /nvme/cache")
    options = unhedged(storage_options, seconds)
    work = Work(
        os.fspath(url), batch, seq_len, image_size, decode, seed, lanes, window, storage_options=options
    )  # fmt: skip
    limits = Limits(seconds, parse_size(most, "most"))
    objects, manifest = objects_below(work.url, options)
    asked = limits if cache is None else limits.part(seconds, 1 - _DISK[1])
    disk = measured = None
    if manifest is None and (seq_len is not None or image_size is not None):
        raise OptionError(f"{redact(work.url)} is no dataset: seq_len and image_size go with one")
    if cache is not None:
        disk = measure_disk(os.path.abspath(os.fspath(cache)), _part(limits, seconds, _DISK))
    on_disk = limits.used
    if manifest is not None:
        measured = measure_rates(work.resolved(manifest.kind), _part(asked, seconds, _RATES))
    store = _store(work.url, options, objects, asked, seconds)
    fetch = 0.0 if store.throughput is None else store.throughput.best.cpu_seconds_per_gb / 1e9
    rates = None if measured is None else measured.rates(fetch)
    count = cores()
    free, free_one, shared = calibrated(count, max(_CALIBRATION, _CALIBRATION_SHARE * seconds))
    return Profile(
        VERSION, __version__, socket.gethostname(),
        datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        count, free, free_one, shared, redact(work.url), round(limits.elapsed, 1),
        limits.used - on_disk, on_disk, tuple(limits.cut), store, disk, rates,
    )  # fmt: skip


def _part(limits: Limits, seconds: float, share: tuple[float, float]) -> Limits:
    return limits.part(share[0] * seconds, share[1])


def _store(
    url: str, options: dict[str, Any], objects: list[Object], limits: Limits, seconds: float
) -> StoreRates:
    ranges = Ranges(objects)
    beside = _is_beside(url, options)
    idle = busy_cores(_IDLE) if beside else 0.0
    found: list[Latency] = []
    part = _part(limits, seconds, _LATENCIES)
    sizes = [size for size in SIZES if size <= ranges.largest] or [ranges.largest]
    for number, size in enumerate(sizes):
        ranges.make_cold()
        one = latency(ranges.read, size, part.part(part.seconds_left / (len(sizes) - number), 1 / len(sizes)))
        if one is None:
            limits.note(f"latency of {size} bytes: left out, the limits were reached")
        else:
            found.append(one)
    if len(sizes) < len(SIZES):
        limits.note(f"ranges above {sizes[-1]} bytes: no object is so large")
    large, small = min(_LARGE, ranges.largest), min(_SMALL, ranges.largest)
    throughput = sweep(ranges, large, _part(limits, seconds, _SWEEP), _MOST, idle)
    iops = sweep(ranges, small, _part(limits, seconds, _IOPS), _MOST, idle)
    opened = []
    for share in _SHARES if throughput else ():
        ranges.make_cold()
        knee = next(level for level in throughput.levels if level.concurrency == throughput.knee)  # type: ignore[union-attr]
        part = limits.part(_OPEN[0] * seconds / len(_SHARES), _OPEN[1] / len(_SHARES))
        opened.append(open_loop(ranges.read, large, share * knee.per_second, share, part))
    base, stream = _line(found)
    return StoreRates(
        objects[0].store.backend, len(objects), ranges.total, beside, tuple(found), base, stream, throughput,
        iops, tuple(one for one in opened if one is not None), ranges.retries,
    )  # fmt: skip


def _line(latencies: list[Latency]) -> tuple[float, float]:
    """(milliseconds of a request without its bytes, bytes per second after that), by the medians."""
    if len(latencies) < 2:
        return (latencies[0].p50_ms, 0.0) if latencies else (0.0, 0.0)
    small, large = latencies[0], latencies[-1]
    per_byte = (large.p50_ms - small.p50_ms) / (large.bytes - small.bytes)
    if per_byte <= 0:
        return small.p50_ms, 0.0
    return max(0.0, small.p50_ms - per_byte * small.bytes), 1e3 / per_byte


def _is_beside(url: str, options: dict[str, Any]) -> bool:
    """Whether the store is another program on this machine."""
    if local_path_of(url) is not None:
        return False
    given = [url, *(str(value) for value in options.values() if isinstance(value, str))]
    given += [value for name, value in os.environ.items() if name.startswith("AWS_ENDPOINT_URL")]
    return any(_loopback(text) for text in given)


def _loopback(text: str) -> bool:
    try:
        host = urlsplit(text).hostname or ""
    except ValueError:
        return False
    return host == "localhost" or host.startswith("127.") or host == "::1"
