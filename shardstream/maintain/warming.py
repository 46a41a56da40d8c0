"""One run of warm(): from the frames that are wanted to blocks on the disk, and the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.counters.layout import slot
from shardstream.counters.page import begin
from shardstream.counters.recorder import put
from shardstream.dataset.contents import Contents
from shardstream.dataset.interfaces import Part
from shardstream.dataset.mixture_contents import MixtureContents
from shardstream.errors import OptionError
from shardstream.maintain.warm_plan import IndexesDoNotFit, all_frames, frames_of_ranks
from shardstream.order.cursor import Run
from shardstream.progress import Report, Reporter
from shardstream.read.dataset_blocks import STREAMS
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.disk import DiskTier
from shardstream.storage.cache.entries import cost, unit
from shardstream.storage.fetch.filling import Filling
from shardstream.storage.fetch.in_flight import BlockRequest

__all__ = ["Warmed", "Warming"]

_WARMED, _WANTED = slot("warmed_bytes"), slot("warm_bytes")
_WAIT = 300.0  # seconds to wait until the disk takes an index


@dataclass
class Warmed:
    """The outcome of warm(), in blocks. A block is a frame or an index.

    Args:
        wanted, wanted_bytes: the blocks within the limit; bytes as they are stored.
        present: of these, the blocks that were there before.
        fetched, fetched_bytes: of these, the blocks that were fetched.
        missing: of these, the blocks that are not there now.
        left_out: how many blocks are known to lie beyond the limit; there may be more.
        corrupt: the names of damaged blocks, if `check` was asked for.
        failed: messages of requests that failed.
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
        """Whether all that will be read is in the cache, and no block that was looked at is damaged."""
        return self.filled and not self.left_out

    @property
    def filled(self) -> bool:
        """Whether all that lies within the limit is in the cache."""
        return not (self.missing or self.corrupt or self.failed)


class _NeededSoon:
    """Tells a reader's cache that everything is needed soon, so that it evicts nothing of this run."""

    def __init__(self, reader: DatasetReader) -> None:
        self._shards = reader.manifest.shards

    def next_uses(self, shard: int) -> NDArray[np.float64]:
        """In how many epochs each frame of a shard is needed, [frames]: now."""
        return np.zeros(self._shards[shard].frames)

    def read_in_epoch(self, shard: int) -> None:
        """No other frames are fetched with a request."""


class _Space:
    """The room that wanted blocks may take: of each disk, and within the limit of all."""

    def __init__(self, disks: Iterable[DiskTier], limit: int | None) -> None:
        self._used: dict[DiskTier, int] = dict.fromkeys(disks, 0)
        self._capacity = {disk: disk.capacity for disk in self._used}
        self._limit = limit
        self._folders: set[tuple[DiskTier, str]] = set()

    def take(self, disk: DiskTier, block: Block) -> bool:
        """Take the room of a block; False, and nothing taken, if there is too little."""
        # The first block of a shard makes a folder.
        folder = (disk, block.group)
        price = cost(block.size) + (0 if folder in self._folders else unit(0))
        if self._used[disk] + price > self._capacity[disk]:
            return False
        if self._limit is not None and sum(self._used.values()) + price > self._limit:
            return False
        self._used[disk] += price
        self._folders.add(folder)
        return True


class Warming:
    """One run.

    Args:
        contents: of the dataset, with caches and readers of its own.
        now: the place in it from which epochs count.
        ranks: the ranks whose data is wanted; None for all data.
        epochs: how many epochs of theirs.
        limit: bytes of the caches that may be used, or None.
        check: look only.
        present: index blocks, and whether each was on the disk before the dataset was opened.
        progress: called with a Progress as blocks arrive.
    """

    def __init__(
        self,
        contents: Contents[Any],
        now: Run,
        ranks: list[int] | None,
        epochs: int,
        limit: int | None,
        check: bool,
        present: dict[Block, bool],
        progress: Report,
    ) -> None:
        self._contents, self._now, self._ranks, self._epochs = contents, now, ranks, epochs
        self._limit, self._check, self._present = limit, check, present
        self._report = Reporter(progress)
        self._done = self._found = 0  # bytes
        self._planned = self._full = False
        self.report = Warmed()
        self._disks: dict[int, DiskTier] = {}  # by dataset, those that have something to fetch
        self._plans: list[_NeededSoon] = []  # readers hold them weakly
        parts: list[Any] = contents.parts if isinstance(contents, MixtureContents) else [contents]
        for part in parts:
            if not part.remote:
                continue
            if part.cache.dir is None:
                raise OptionError(f"{part.url}: warm needs a cache with a dir")
            self._disks[id(part)] = part.cache.open_disk()
            self._plans.append(_NeededSoon(part.reader))
            part.reader.ahead.begin_epoch(self._plans[-1])
        if not self._disks:
            raise OptionError(
                f"{contents.url} is local and read where it is; Cache(..., always=True) keeps it, too"
            )
        self._parts: list[Part] = [part for part in parts if id(part) in self._disks]
        self._space = _Space(self._disks.values(), limit)
        self._indexed: set[tuple[DiskTier, str]] = set()
        self._seen: dict[tuple[DiskTier, str, bool], NDArray[np.bool_]] = {}
        self._filling = Filling(self._arrived)
        self._estimate = sum(map(self._share, self._parts))

    def _share(self, part: Part) -> int:
        """About how many bytes of a dataset are wanted."""
        shards, ranks = part.manifest.shards, part.topology.dp_size
        some = 1.0 if self._ranks is None else min(1.0, len(self._ranks) * self._epochs / ranks)
        return int(some * sum(info.bytes + info.index_bytes for info in shards))

    def run(self) -> Warmed:
        """Plan, fetch, and look whether each block is there."""
        begin("warm", self._contents.url)
        try:
            if not all(self._expect(part, part.consulted) for part in self._parts):
                self._leave_out()
            self._want_all()
            self._planned = True
            self._filling.finish()
        finally:
            self._filling.end()
        report, filling = self.report, self._filling
        report.fetched, report.fetched_bytes = filling.fetched, filling.fetched_bytes
        report.missing += filling.missing
        report.failed += filling.failed
        self._arrived(0)
        return report

    def _want_all(self) -> None:
        """Go through the plan until nothing more fits."""
        if self._ranks is None:
            frames = all_frames(self._parts, self._expect)
        else:
            frames = frames_of_ranks(self._contents, self._now, self._ranks, self._epochs, self._expect)
        try:
            while not self._full and (read := next(frames, None)) is not None:
                self._want(*read)
        except IndexesDoNotFit:
            if not self._full:
                self._leave_out()

    def _leave_out(self) -> None:
        self._full = True
        self.report.left_out += 1

    def _expect(self, part: Part, shards: Iterable[int]) -> bool:
        """Fetch the indexes of these shards that are not known yet; False if they do not fit."""
        disk, reader = self._disks.get(id(part)), part.reader
        if disk is None:
            return True
        absent: list[int] = []
        for shard in shards:
            key = disk, reader.blocks.group(shard)
            if key in self._indexed:
                continue
            want = reader.blocks.index(shard)
            if not self._space.take(disk, want.block):
                reader.fetch_indexes_ahead(absent, _WAIT)
                return False
            self._indexed.add(key)
            if not self._here(disk, want):
                absent.append(shard)
                if not self._check:
                    self._filling.expect(reader.blocks.fetcher, disk, want)
        reader.fetch_indexes_ahead(absent, _WAIT)
        return True

    def _want(self, part: Part, shard: int, frames: NDArray[np.int64]) -> None:
        """Fetch the frames of a shard that were not wanted before."""
        disk, reader = self._disks.get(id(part)), part.reader
        if disk is None or reader.local.mapped(shard) is not None:
            return
        info = reader.manifest.shards[shard]
        key = disk, reader.blocks.group(shard), reader.blocks.raw
        seen = self._seen.setdefault(key, np.zeros(info.frames, np.bool_))
        frames = frames[~seen[frames]]
        seen[frames] = True
        if info.codec in STREAMS and len(frames):
            # Such a shard is one block, whichever frame is asked for.
            seen[:], frames = True, frames[:1]
        index = reader.index(shard) if len(frames) else None
        for frame in frames.tolist():
            assert index is not None
            want = reader.blocks.frame(shard, frame, index)
            if not self._space.take(disk, want.block):
                self._leave_out()
                return
            if not self._here(disk, want) and not self._check:
                self._filling.add(reader.blocks.fetcher, disk, want)
        self._filling.offer()

    def _here(self, disk: DiskTier, want: BlockRequest) -> bool:
        """Count a block that is wanted; whether it is there."""
        self.report.wanted += 1
        self.report.wanted_bytes += want.size
        state = "missing"
        if self._check:
            state = disk.state(want.block)
            self.report.missing += state == "missing"
            if state == "damaged":
                self.report.corrupt.append(f"{want.url}: {want.block.name}")
        elif self._present.get(want.block, disk.has(want.block)):
            state = "sound"
        self.report.present += state == "sound"
        if state == "sound" or want.block.name == "index":
            self._done += want.size
        if state == "sound":
            self._found += want.size
        return state == "sound"

    def _arrived(self, size: int) -> None:
        """Report the progress, after so many more bytes have arrived."""
        self._done += size
        total = self.report.wanted_bytes
        if not self._planned:
            total = max(total, self._estimate if self._limit is None else min(self._estimate, self._limit))
        put(_WARMED, self._done)
        put(_WANTED, total)
        self._report(done_bytes=self._done, total_bytes=total, found_bytes=self._found)
