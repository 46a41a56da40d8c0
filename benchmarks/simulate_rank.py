"""One simulated rank: it plans with the package's own code, and takes batch after batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.simulate_network import Clock, Cores
from benchmarks.simulate_reader import Dataset, Pool, Reader
from benchmarks.simulate_settings import Costs, Settings
from benchmarks.simulate_store import Client
from shardstream.dataset.access_plan import AccessPlan
from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.delivery import Delivery
from shardstream.dataset.opening import Opening
from shardstream.dataset.rank_batches import RankBatches
from shardstream.dataset.requests import UnitOptions
from shardstream.dataset.sample_contents import SampleContents
from shardstream.order.lanes import Order, distinct
from shardstream.order.topology import Topology
from shardstream.read.engine.building import Built
from shardstream.read.engine.frames import FramesInMemory
from shardstream.read.engine.pipeline import _DEPTH, _PLANNED, _Flow, _Plan
from shardstream.read.engine.stats import Stats
from shardstream.read.engine.units import Budget, Unit

__all__ = ["Rank"]

_STATS = Stats()  # nobody reads it


class _Contents(SampleContents):
    """The samples, whose orders all ranks share: an order is a function of the dataset, not of the rank."""

    orders: dict[tuple[int, int], Order]

    def order(self, epoch: int, lanes: int | None = None) -> Order:
        key = epoch, lanes or self.lanes
        found = self.orders.get(key)
        if found is None:
            found = self.orders[key] = super().order(epoch, key[1])
        return found


class _Opened(Opening):
    """An opening whose reader is the simulated one."""

    def __init__(self, reader: Reader, settings: Settings, rank: DatasetRank) -> None:
        super().__init__(reader.url, None, settings.cache, settings.shuffle, rank)
        self._simulated = reader

    @property
    def reader(self) -> Any:
        return self._simulated


class _Builder:
    """In place of the engine's `Builder`: what its pool calls is looked at, and never called."""

    expected: int | None = None

    def build(self, unit: Unit, frames: Any) -> None: ...


class _Stream(_Flow[float]):
    """The read engine of one rank, whose threads are tasks in virtual time.

    What may begin and when, what frames stay, and how much is ahead is decided by the methods of `_Flow`.
    """

    def __init__(self, rank: Rank, source: Any, units: Iterator[Unit | list[int]], budget: Budget) -> None:
        super().__init__(source, iter(()), lambda items: 0.0, budget, _STATS, False, None)
        self._rank, self._items = rank, units
        one, many = (lambda: 1), (lambda: budget.threads)
        news = rank.news
        self._planner = Pool(rank.clock, one, self._plan_some, news)  # type: ignore[assignment]
        self._fetchers = Pool(rank.clock, many, self._fetch, news)  # type: ignore[assignment]
        self._builders = Pool(rank.clock, many, self._build, news)  # type: ignore[assignment]
        self._builder = _Builder()  # type: ignore[assignment]
        self._frames = FramesInMemory(lambda shard, frame: None, None, self._fetchers)  # as `use` submits

    def taken(self) -> Iterator[float | None]:
        """The seconds of the consumer for each batch; None where it waits. The loop of `_Flow.batches`."""
        self._plan = self._planner.submit(self._some)
        while True:
            while not self._ready():
                yield None
            if not self._pending:
                return
            head = self._head = self._pending.popleft()
            if not head.unit.direct:
                self._release(head)
            head.left -= 1
            self._frames.shrink(self._budget.keep + self._fetched)
            self._admit()
            for size in head.unit.sizes:
                yield size * self._rank.costs.consume
                head.left -= 1
            if head.unit.direct:
                self._release(head)
            self._head = None

    def _plan_some(self, call: Any, done: Callable[[_Plan], None]) -> None:
        """As `_Flow._some`, for as long as planning takes in virtual time."""
        self._plan_more(_Plan([], None, False), done, _PLANNED)

    def _plan_more(self, plan: _Plan, done: Callable[[_Plan], None], left: float) -> None:
        """Plan for so many seconds, and at least until there is a unit."""
        rank, spent = self._rank, 0.0
        while len(plan.units) < _DEPTH:
            item = next(self._items, None)
            if item is None:
                plan.over = True
                break
            if isinstance(item, list):  # shards whose indexes are not there: to wait for them takes longer
                rank.reader.when_loaded(item, partial(self._plan_more, plan, done, 0.0))
                return
            plan.units += self._pieces(item)
            spent += rank.costs.unit + rank.planning
            rank.planning = 0.0
            if spent > left:
                break
        rank.cores.work(spent, partial(done, plan))

    def _fetch(self, call: Any, done: Callable[[None], None]) -> None:
        """A thread that waits for a frame, and decompresses it."""
        shard, frame = call.args
        rank = self._rank
        seconds = rank.costs.fetch * rank.samples_of(shard, frame)
        rank.reader.frame(shard, frame, lambda: rank.cores.work(seconds, lambda: done(None)))

    def _build(self, call: Any, done: Callable[[Built[float]], None]) -> None:
        """A thread that waits for the frames of a unit, and builds its batches."""
        unit, frames = call.args
        rank = self._rank
        if not all(task.done for task in frames.values()):
            rank.when_news(partial(self._build, call, done))
            return

        def built() -> None:
            size = rank.settings.batch_bytes * len(unit.sizes)
            self._builder.expected = rank.settings.batch_bytes  # type: ignore[misc]
            done(Built(deque((0.0, size) for size in unit.sizes), None, size))

        rank.cores.work(rank.costs.build * sum(unit.sizes), built)


class Rank:
    """One rank.

    Args:
        number, ranks: Its place.
        dataset: What is read.
        settings, costs: See there.
        clock: The time.
        cores: Of its node.
        client: Its requests.

    Attributes:
        opened, first: When the manifest was there, and the first batch; seconds.
        waited: Seconds that it waited for batches, without the first one.
    """

    def __init__(
        self, number: int, ranks: int, dataset: Dataset, settings: Settings, costs: Costs, clock: Clock,
        cores: Cores, client: Client,
    ) -> None:  # fmt: skip
        self.settings, self.costs, self.clock, self.cores = settings, costs, clock, cores
        self.dataset, self.client = dataset, client
        self.reader = Reader(dataset, clock, client, settings.cache)
        rank = DatasetRank(Topology(number, ranks))
        self._opening = _Opened(self.reader, settings, rank)
        contents = _Contents.__new__(_Contents)
        contents.orders = dataset.orders
        contents.__init__(self._opening, settings.shuffle, rank, settings.transform, None, settings.decode)  # type: ignore[misc]
        budget = Budget(settings.prefetch, settings.cache.ram_for_frames, settings.threads)
        self._contents = contents
        self._batches = RankBatches(contents, settings.batch, "drop", None, False, budget)
        self.planning = 0.0  # seconds of a core that planning has taken and nobody has spent yet
        self._news: list[Callable[[], None]] = []
        self._wants: Callable[[], object] | None = None
        self.opened = self.first = self.waited = 0.0
        self.batches = self._batches.count()

    @property
    def connections(self) -> int:
        """How many connections are opened while the manifest is read."""
        return self._opening._connections()

    def begin(self) -> None:
        """Begin the epoch."""
        self.opened = self.clock.now
        contents, delivery = self._contents, Delivery()
        plan, budget = AccessPlan(contents, 0), self._batches.budget
        contents.tell_needs(plan, delivery, budget.keep)
        options = UnitOptions(direct=True)

        def units() -> Iterator[Any]:
            for request in plan.requests(self._batches.requests(0), delivery):
                shards = distinct(plan.order.shards(request.positions)).tolist()
                missing = self.reader.missing(shards)
                if missing:
                    yield missing
                fixed, each = self.costs.plan
                self.planning += fixed + each * len(request.positions)
                yield from contents.units(plan.order, [request], options)

        self._delivery = delivery
        self._taken = _Stream(self, contents.source, units(), budget).taken()

    def take(self, came: Callable[[], object]) -> None:
        """Ask for the next batch; `came` is called when it is there."""
        self._wants = came
        self._look()

    def news(self) -> None:
        """A task has ended."""
        for call in self._news[:]:
            self._news.remove(call)
            call()
        if self._wants is not None:
            self.clock.after(0.0, self._look)

    def when_news(self, call: Callable[[], None]) -> None:
        self._news.append(call)

    def samples_of(self, shard: int, frame: int) -> int:
        first = self.reader.index(shard).frame_first
        return int(first[frame + 1]) - int(first[frame])

    def _look(self) -> None:
        if self._wants is None:
            return
        seconds = next(self._taken)
        if seconds is None:
            return
        came, self._wants = self._wants, None
        self._delivery.delivered()
        self.cores.work(seconds, came)
