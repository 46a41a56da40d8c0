"""warm(): fill the SSD tier with what a machine's ranks are going to read, before they do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset import OrderedDataset, StreamingDataset, TokenDataset
from shardstream.errors import OptionError, ShardstreamError
from shardstream.format.sizes import parse_size
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology
from shardstream.read.reader import DatasetReader
from shardstream.storage.block_files import cost
from shardstream.storage.cache import Cache
from shardstream.storage.disk import Disk
from shardstream.storage.flights import Want

__all__ = ["WarmProgress", "Warmed", "warm"]

_POSITIONS = 1 << 16  # planned at a time
_WINDOW = 256 << 20  # bytes of frames in the order of need, among which neighbours are fetched as one
_THREADS = 16
_WAIT = 300.0  # seconds to wait for the disk


class WarmProgress(NamedTuple):
    """How far it has come; bytes as they are stored."""

    done_bytes: int
    total_bytes: int
    seconds: float


@dataclass
class Warmed:
    """What was wanted and what came of it, in blocks: frames and indexes.

    left_out: those beyond the limit.  corrupt: found by `check`, by name.  failed: what went wrong.
    """

    wanted: int = 0
    wanted_bytes: int = 0
    present: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    missing: int = 0
    left_out: int = 0
    corrupt: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether all that was wanted is in the cache, and sound as far as it was looked at."""
        return not (self.missing or self.corrupt or self.failed)


def warm(
    url: str | os.PathLike[str],
    cache: Cache | str | os.PathLike[str],
    ranks: Iterable[int] | None = None,
    dp_size: int | None = None,
    seed: int = 0,
    epochs: int = 1,
    limit: str | int | None = None,
    check: bool = False,
    shuffle: bool | Shuffle = True,
    seq_len: int | None = None,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[WarmProgress], None] | None = None,
) -> Warmed:
    """Fetch into a cache what `ranks` of `dp_size` will read, in the order of their need.

    Without ranks, everything. Running it again goes on where it stopped; it may run beside a job.

    seed: of the order, or give `shuffle` as the job does.  epochs: the first so many.
    limit: stop after so many bytes.  check: fetch no frame, report what is missing or damaged.
    seq_len: as the job's, for a TokenDataset.
    """
    if not isinstance(cache, Cache):
        cache = Cache(cache)
    if cache.dir is None:
        raise OptionError("warm needs a cache with a dir")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise OptionError(f"epochs={epochs!r} must be an int, at least 1")
    if (ranks is None) != (dp_size is None):
        raise OptionError("ranks and dp_size go together: which ranks, of how many")
    chosen = shuffle if isinstance(shuffle, Shuffle) or not shuffle else Shuffle(seed)
    ranks = None if ranks is None else list(ranks)
    if ranks == []:
        raise OptionError("ranks is empty: name at least one, or leave it out for all data")
    place = [Topology(rank, dp_size or 1) for rank in ranks or ()]  # refuses ranks that cannot be
    disk = cache.open_disk()  # an error here, where a job would go on without
    ds = _dataset(url, cache, chosen, Topology(0, dp_size or 1), seq_len, storage_options)
    reader = ds.reader
    if reader.kept.tiers.disk is None:
        raise OptionError(
            f"{reader.url} is local and read where it is; Cache(..., always=True) keeps it, too"
        )
    reader.plan(lambda shard: np.zeros(reader.manifest.shards[shard].frames), lambda shard: None)
    frames = _all(reader) if ranks is None else _needed(ds, [at.dp_rank for at in place], epochs)
    wants, left_out = _within(
        _wants(reader, frames), min(disk.limit, parse_size(limit or disk.limit, "limit"))
    )
    report = Warmed(len(wants), sum(want.size for want in wants), left_out=left_out)
    if check:
        _check(disk, wants, report)
    else:
        _fetch(reader, disk, wants, report, progress)
    return report


def _dataset(
    url: str | os.PathLike[str],
    cache: Cache,
    shuffle: bool | Shuffle,
    topology: Topology,
    seq_len: int | None,
    options: dict[str, Any] | None,
) -> OrderedDataset:
    if seq_len is not None:
        return TokenDataset(
            url, seq_len, shuffle=shuffle, cache=cache, topology=topology, storage_options=options
        )
    return StreamingDataset(url, shuffle=shuffle, cache=cache, topology=topology, storage_options=options)


def _all(reader: DatasetReader) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for shard, info in enumerate(reader.manifest.shards):
        yield shard, np.arange(info.frames, dtype=np.int64)


def _needed(ds: OrderedDataset, ranks: list[int], epochs: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(shard, frames) in the order in which the ranks come to them, each frame once."""
    shards, size = ds.manifest.shards, ds.topology.dp_size
    seen = [np.zeros(info.frames, np.bool_) for info in shards]
    mine = np.isin(np.arange(size), ranks)
    for epoch in range(epochs):
        order = ds.order(epoch)
        for begin in range(0, ds.total, _POSITIONS):
            positions = np.arange(begin, min(begin + _POSITIONS, ds.total), dtype=np.int64)
            places, numbers = order.locate(positions[mine[positions % size]])
            # By shard, the shards in the order of their first use.
            found, first = np.unique(places, return_index=True)
            for shard in found[np.argsort(first)].tolist():
                frames = ds.frames_of(shard, numbers[places == shard])
                frames = frames[~seen[shard][frames]]
                seen[shard][frames] = True
                if len(frames):
                    yield shard, frames


def _wants(reader: DatasetReader, frames: Iterable[tuple[int, NDArray[np.int64]]]) -> Iterator[Want]:
    indexed, whole = set[int](), set[str]()
    for shard, numbers in frames:
        if shard not in indexed:
            indexed.add(shard)
            yield reader.kept.index(shard)
        index = reader.index(shard)
        for frame in numbers.tolist():
            want = reader.kept.frame(shard, frame, index)
            if want.block.name != "whole":
                yield want
            elif want.block.group not in whole:
                whole.add(want.block.group)
                yield want


def _within(wants: Iterator[Want], limit: int) -> tuple[list[Want], int]:
    """Those that fit into `limit` bytes of disk, and how many do not."""
    kept: list[Want] = []
    used = left_out = 0
    for want in wants:
        used += cost(want.block.size)
        if used > limit:
            left_out += 1
        else:
            kept.append(want)
    return kept, left_out


def _check(disk: Disk, wants: list[Want], report: Warmed) -> None:
    for want in wants:
        state = disk.state(want.block)
        report.present += state == "sound"
        report.missing += state == "missing"
        if state == "damaged":
            report.corrupt.append(f"{want.url}: {want.block.name}")


def _fetch(
    reader: DatasetReader,
    disk: Disk,
    wants: list[Want],
    report: Warmed,
    progress: Callable[[WarmProgress], None] | None,
) -> None:
    started, total = time.monotonic(), report.wanted_bytes
    fetcher, absent = reader.kept.fetcher, [want for want in wants if not disk.has(want.block)]
    report.present = len(wants) - len(absent)
    done = total - sum(want.size for want in absent)
    pending: dict[Future[list[tuple[Want, ShardstreamError]]], int] = {}

    def collect(most: int) -> None:
        nonlocal done
        while len(pending) > most:
            for future in wait(pending, timeout=_WAIT, return_when=FIRST_COMPLETED).done:
                done += pending.pop(future)
                report.failed += [str(error) for _, error in future.result()]
                if progress is not None:
                    progress(WarmProgress(done, total, time.monotonic() - started))

    with ThreadPoolExecutor(_THREADS, "shardstream-warm") as pool:
        try:
            for window in _windows(absent):
                for run in fetcher.ranges(window):
                    future = pool.submit(fetcher.store, run, _WAIT)
                    pending[future] = sum(want.size for want in run)
                    collect(2 * _THREADS)
            collect(0)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    disk.flush(_WAIT)
    for want in absent:
        # What another process was fetching may still be on its way to the disk.
        if not disk.has(want.block) and not report.failed:
            try:
                fetcher.get(want)
                disk.flush(_WAIT)
            except ShardstreamError as error:
                report.failed.append(str(error))
        here = disk.has(want.block)
        report.fetched += here
        report.fetched_bytes += want.size if here else 0
        report.missing += not here


def _windows(wants: list[Want]) -> Iterator[list[Want]]:
    window: list[Want] = []
    size = 0
    for want in wants:
        window.append(want)
        size += want.size
        if size >= _WINDOW:
            yield window
            window, size = [], 0
    if window:
        yield window
