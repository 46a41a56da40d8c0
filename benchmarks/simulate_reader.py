"""What one simulated rank reads with: the package's planning of blocks and ranges, without threads.

`DatasetBlocks`, `FramesAhead`, `RangeExtender`, `Planner`, `Arrivals`, `FetchedAhead`, `EpochProgress`,
`Tiers` and `MemoryTier` are the package's own. Their threads become tasks in virtual time, and bytes become
memory that all blocks share, since nobody looks at it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.simulate_network import Clock
from benchmarks.simulate_store import Client
from shardstream.format.index import ShardIndex
from shardstream.format.manifest import Manifest
from shardstream.order.lanes import Order, RecentWindows, recent_windows
from shardstream.read.dataset_blocks import DatasetBlocks
from shardstream.read.frames_ahead import FramesAhead
from shardstream.read.local_frames import LocalFrames
from shardstream.storage.cache.options import Cache
from shardstream.storage.fetch.in_flight import BlockRequest, InFlight
from shardstream.storage.fetch.planner import _FEW, _MOST_BYTES

__all__ = ["Dataset", "Pool", "Reader"]

_NOTHING = memoryview(np.zeros(1 << 30, np.uint8).data).cast("B").toreadonly()  # pages that nobody touches
_HEAD_START = 1.0  # seconds: that of `Planner`
_WINDOWS = 8 << 30  # bytes of orders' windows, which all ranks share


class Dataset:
    """What all ranks know of a dataset: its manifest, its indexes, its orders.

    Args:
        manifest: Of the dataset.
        index: From a shard to its index.
        manifest_bytes: What a process reads at its start: the manifest, or its stub.
        body_bytes: The body of the manifest, 0 if it is one file.
        prefixes: Into how many parts of the store the shards fall.
    """

    def __init__(
        self,
        manifest: Manifest,
        index: Callable[[int], ShardIndex],
        manifest_bytes: int,
        body_bytes: int = 0,
        prefixes: int = 1,
    ) -> None:
        self.manifest, self.index = manifest, index
        self.manifest_bytes, self.body_bytes = manifest_bytes, body_bytes
        self.windows: RecentWindows = recent_windows(_WINDOWS)
        self.orders: dict[tuple[int, int], Order] = {}
        count = len(manifest.shards)
        self.prefix: dict[str, int] = {}
        for number, shard in enumerate(manifest.shards):
            self.prefix[shard.url] = self.prefix[shard.index_url] = number * prefixes // count
        self.by_name: Any = None


class Task:
    """A task of a pool, as the read engine looks at it."""

    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done, self.error, self.value = False, None, None

    def result(self) -> Any:
        return self.value


class Pool:
    """Takes tasks as a pool of threads does, and begins them in their order.

    Args:
        clock: The time.
        most: How many run at a time at most.
        work: Called with the call that was submitted, and with a function to call with the result, later.
        ended: Called when a task has ended.
        most_bytes: No task begins while those at work have so many bytes, unless they are few.
        few: So many tasks are few.
    """

    def __init__(
        self,
        clock: Clock,
        most: Callable[[], int],
        work: Callable[[Any, Callable[[Any], None]], None],
        ended: Callable[[], object] = lambda: None,
        most_bytes: float = math.inf,
        few: int = 0,
    ) -> None:
        self._clock, self.most, self._work, self._ended = clock, most, work, ended
        self._most_bytes, self._few = most_bytes, few
        self._queue: deque[tuple[Any, Task, int]] = deque()
        self._running = self._bytes = 0

    def submit(self, call: Any, size: int = 0) -> Task:
        """Let a thread make a call, which fetches so many bytes."""
        task = Task()
        self._queue.append((call, task, size))
        self._clock.after(0.0, self._begin)  # another thread does it
        return task

    def _begin(self) -> None:
        while (
            self._queue
            and self._running < self.most()
            and (self._bytes < self._most_bytes or self._running < self._few)
        ):
            self._running += 1
            call, task, size = self._queue.popleft()
            self._bytes += size
            self._work(call, partial(self._end, task, size))

    def _end(self, task: Task, size: int, value: Any) -> None:
        task.value, task.done = value, True
        self._running -= 1
        self._bytes -= size
        self._ended()
        self._begin()


class Reader:
    """In place of a DatasetReader.

    Args:
        dataset: What is read.
        clock: The time.
        client: Of the rank.
        cache: Its options; without a folder.
    """

    all_local = False

    def __init__(self, dataset: Dataset, clock: Clock, client: Client, cache: Cache) -> None:
        self.manifest, self.index, self._dataset = dataset.manifest, dataset.index, dataset
        self.url, self._clock, self._client = "s3://simulated", clock, client
        tiers = cache.tiers()
        self.windows, self.budget = dataset.windows, tiers.budget
        self.blocks = DatasetBlocks(dataset.manifest, self._never, tiers, self.shard_name, raw=False)
        self.local = LocalFrames(None, self.index, self.shard_name)
        self.ahead = FramesAhead(self.blocks, self.local, self.index)
        self._known: set[int] = set()  # shards whose indexes are in memory
        self._arrivals, self._progress = self.blocks.fetcher._arrivals, self.blocks.fetcher._progress
        self._planner = self.blocks.fetcher._planner
        self._planner.submit = self._plan_soon  # type: ignore[method-assign]
        self._planner._ranges = Pool(  # type: ignore[assignment]
            clock, lambda: client.limit.now, self._fetch_range, most_bytes=_MOST_BYTES, few=_FEW
        )
        self._plans = Pool(clock, lambda: 1, self._plan)
        if dataset.by_name is None:
            self.blocks._shard_of(self.blocks.group(0))
            dataset.by_name = self.blocks._by_name
        self.blocks._by_name = dataset.by_name

    @staticmethod
    def _never(url: str, start: int, size: int) -> memoryview:
        raise AssertionError("a simulated rank reads nothing")

    def shard_name(self, shard: int) -> str:
        return f"shard {shard}"

    def loaded_index(self, shard: int) -> ShardIndex:
        return self.index(shard)

    def load_indexes(self, shards: Sequence[int]) -> None:
        """They are there: `when_loaded` comes before."""

    def fetch_indexes_ahead(self, shards: Sequence[int], wait: float = 0.0) -> None:
        """As `Indexes.fetch_ahead`."""
        missing = [shard for shard in dict.fromkeys(shards) if shard not in self._known]
        self.blocks.fetcher.ahead([self.blocks.index(shard) for shard in missing], first=True)

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Those of the shards whose indexes are not in memory."""
        return [shard for shard in shards if shard not in self._known]

    def when_loaded(self, shards: Sequence[int], done: Callable[[], object]) -> None:
        """Call `done` when the indexes of these shards are there."""
        left = len(shards)

        def one(shard: int) -> None:
            nonlocal left
            self._known.add(shard)
            left -= 1
            if not left:
                done()

        for shard in shards:
            self.get(self.blocks.index(shard), partial(one, shard))

    def frame(self, shard: int, frame: int, done: Callable[[], object]) -> None:
        """Call `done` when a frame is there."""
        self.get(self.blocks.frame(shard, frame, self.index(shard)), done)

    def get(self, request: BlockRequest, done: Callable[[], object]) -> None:
        """As `Fetcher.get`: a block that is here, is on its way, or is now sent for."""
        found, fetch = self._arrivals.ask(request)
        if not isinstance(found, InFlight):
            self._arrivals.given(request.block)
            self._progress.add(request.block, request.size)
            self._clock.after(0.0, done)
        elif not fetch:
            found.future.add_done_callback(lambda _: self._clock.after(0.0, lambda: self.get(request, done)))
        else:
            self._fetch_one(request, found, done)

    def _fetch_one(self, request: BlockRequest, found: InFlight, done: Callable[[], object]) -> None:
        tiers = self.blocks.tiers

        def came(data: memoryview) -> None:
            self._arrivals.end(found, data)
            self._progress.add(request.block, request.size)
            done()

        def arrived() -> None:
            data = _NOTHING[: request.size]
            tiers.remember(request.block, data)
            came(data)

        data = tiers.find(request.block)
        if data is not None:
            self._clock.after(0.0, lambda: came(memoryview(data)))
        else:
            what = "indexes" if request.block.name == "index" else "single frames"
            self._client.get(request.size, self._dataset.prefix[request.url], what, arrived)

    def _plan_soon(self, requests: Iterable[BlockRequest], first: bool, patience: float) -> None:
        """As `Planner.submit`."""
        self._arrivals.announce_plan()
        self._plans.submit((requests, first, patience))

    def _plan(self, call: tuple[Iterable[BlockRequest], bool, float], done: Callable[[Any], None]) -> None:
        """`Planner._plan`, when the first frames of the epoch have come, or had their head start."""
        planner, first = self._planner, call[1]
        waiting = [] if first else [future for future in planner._first if not future.done()]
        left, begun = len(waiting), False

        def begin() -> None:
            nonlocal begun
            if not begun:
                begun = True
                planner._first = planner._first if first else []
                planner._plan(*call)
                done(None)

        def one(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._clock.after(0.0, begin)

        if not waiting:
            begin()
            return
        for future in waiting:
            future.add_done_callback(one)
        self._clock.after(_HEAD_START, begin)

    def _fetch_range(self, call: Any, done: Callable[[Any], None]) -> None:
        """As `RangeFetcher.fetch`, of a cache without a folder."""
        run: Sequence[InFlight] = call.args[0]
        first, last = run[0].request, run[-1].request

        def arrived() -> None:
            for in_flight in sorted(run, key=lambda one: not one.request.soon):
                request = in_flight.request
                if request.soon:
                    self._progress.add(request.block)
                self._arrivals.end_ahead(in_flight, _NOTHING[: request.size])
            done(None)

        what = "indexes" if first.block.name == "index" else "ranges"
        size = last.start + last.size - first.start
        self._client.get(size, self._dataset.prefix[first.url], what, arrived)
