"""What is read of a Mixture: its datasets, each at its part of all positions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.access_plan import AccessPlan
from shardstream.dataset.arguments import Stop
from shardstream.dataset.contents import Contents
from shardstream.dataset.delivery import Delivery
from shardstream.dataset.interfaces import Draw
from shardstream.dataset.mixture_batches import MixtureMaker
from shardstream.dataset.mixture_order import MixedOrder, grouped
from shardstream.dataset.mixture_units import Contribution, MixedSource, MixedUnit
from shardstream.dataset.requests import Request, UnitOptions, split
from shardstream.dataset.stored import StoredContents
from shardstream.dataset.token_contents import TokenContents
from shardstream.errors import OptionError
from shardstream.format.shown import counted
from shardstream.order.cursor import Run
from shardstream.order.mixture import ENDLESS, MixtureOrder, Schedule
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.read.engine.units import Source, Unit
from shardstream.storage.cache.options import Cache

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MixtureContents"]

Stored = StoredContents[Source]
_UNIT = 4 << 20  # bytes of batches that one thread builds at a time


class MixtureContents(Contents[MixedOrder]):
    """Samples of several datasets.

    Args:
        parts: The datasets, each with samples.
        shares: The part of all positions that each has, as whole numbers.
        stop: See `Mixture`.
    """

    def __init__(self, parts: Sequence[Stored], shares: list[int], stop: Stop) -> None:
        first = parts[0]
        super().__init__(
            f"Mixture({', '.join(part.url for part in parts)})",
            _shuffle(parts),
            Cache(ram=2 * sum(part.cache.ram_for_frames for part in parts)),
            first.rank,
        )
        self.parts, self.shares, self.stop = list(parts), shares, stop
        self.endless = stop == "never"
        self._same_place(first.topology)
        self._schedule = Schedule(shares)
        self._plans: dict[int, MixtureOrder] = {}
        self._source: tuple[list[Source], MixedSource] | None = None

    @property
    def maker(self) -> MixtureMaker:
        """What makes batches of what units build."""
        return MixtureMaker(self.url, self.parts)

    def decide(self) -> Ranks:
        """The place among the ranks, which now stays, of all datasets."""
        ranks = super().decide()
        for part in self.parts:
            part.decide()
        self._same_place(ranks)
        return ranks

    def placed(self) -> Self:
        """The mixture as another process is to read it for this rank."""
        found = super().placed()
        found.parts = [part.placed() for part in self.parts]
        return found

    def apart(self, cache: Callable[[Cache], Cache]) -> Self:
        """The same, with readers of its own, and with the caches that `cache` makes of theirs."""
        found = copy.copy(self)
        found.parts = [part.apart(cache(part.cache)) for part in self.parts]
        return found

    def without_views(self) -> Self:
        """The same with bytes where values are views of memory, of all datasets."""
        found = copy.copy(self)
        found.parts = [part.without_views() for part in self.parts]
        return found

    def _same_place(self, ranks: Ranks) -> None:
        for part in self.parts:
            if part.topology != ranks:
                raise OptionError(f"the datasets differ in topology: {ranks} and {part.topology}")

    @property
    def total(self) -> int:
        """The samples of an epoch, of all ranks."""
        return ENDLESS if self.endless else self._mixed(self.lanes).total

    @property
    def planned_at_once(self) -> int:
        """How many samples are best planned at once."""
        return max(1, min(_UNIT // max(1, _item_bytes(part)) for part in self.parts))

    def _mixed(self, lanes: int) -> MixtureOrder:
        if lanes not in self._plans:
            sizes = [part.total for part in self.parts]
            self._plans = {lanes: MixtureOrder(self._schedule, sizes, lanes, self.stop)}
        return self._plans[lanes]

    def order(self, epoch: int, lanes: int | None = None) -> MixedOrder:
        """The order of one epoch."""
        return MixedOrder(self._mixed(lanes or self.lanes), self.parts, epoch, self.endless)

    @property
    def remote(self) -> bool:
        """Whether reading one of the datasets may have to wait for a store."""
        return any(part.remote for part in self.parts)

    def draws(self, order: MixedOrder, positions: NDArray[np.int64]) -> Iterator[Draw]:
        """What these positions draw of each dataset, by its epochs."""
        found = order.plan.locate(positions)
        for number, epoch, rows in grouped(found):
            first = order.first[number]
            yield Draw(self.parts[number], first + epoch, order.of(number, epoch), found.position[rows])

    def passes(self, now: Run, count: int) -> Iterator[tuple[int, int, int]]:
        """As of any dataset; if it is endless, until each dataset has been read so many times more."""
        if not self.endless:
            yield from super().passes(now, count)
            return
        plan, end = self._mixed(self.lanes), count
        while plan.first_passes(end) <= now.position:
            end += count
        yield now.epoch, now.position, plan.first_passes(end)

    def tell_needs(self, plan: AccessPlan[MixedOrder], delivery: Delivery, keep: int) -> None:
        """Tell the cache of each dataset when its frames are needed."""
        for number, part in enumerate(self.parts):
            if part.remote:
                plan.order.tell_needs(number, part, delivery)

    @property
    def source(self) -> MixedSource:
        """The frames of all datasets."""
        sources = [part.source for part in self.parts]
        if self._source is None or any(map(_differ, self._source[0], sources)):
            self._source = sources, MixedSource(sources)
        return self._source[1]

    def units(self, order: MixedOrder, requests: Iterable[Request], options: UnitOptions) -> Iterator[Unit]:
        """The work for all requests, each made of the work of the datasets."""
        cheap = self.maker.cheap and not options.collates
        for request in requests:
            for some in [request] if cheap else split(request, False) or [request]:
                yield self._unit(order, some, 0 if cheap else 2)

    def _unit(self, order: MixedOrder, request: Request, grows: int) -> MixedUnit:
        draws = order.plan.locate(request.positions)
        batch = np.repeat(np.arange(len(request.sizes)), request.sizes)
        given = []
        for number, epoch, mine in grouped(draws):
            counts = np.bincount(batch[mine], minlength=len(request.sizes))
            wanted = Request(draws.position[mine], counts[counts > 0].tolist())
            part = self.parts[number]
            units = list(part.units(order.of(number, epoch), [wanted], UnitOptions(source=number)))
            given.append(Contribution(number, part.maker, mine, counts.tolist(), units))

        def cut(singles: bool) -> list[MixedUnit]:
            return [self._unit(order, one, grows) for one in split(request, singles)]

        return MixedUnit(request.sizes, draws.dataset, given, self.maker.tensors, cut, grows)

    def identity(self) -> dict[str, Any]:
        """What a state must agree with: the proportions, and the identity of each dataset."""
        return {
            "stop": self.stop,
            "shares": self.shares,
            "datasets": [part.identity() for part in self.parts],
        }

    def follow(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Read each dataset as it was for a state, if its cache has that manifest; returns what undoes it."""
        theirs = state.get("datasets") if isinstance(state, Mapping) else None
        undo: list[Callable[[], None]] = []

        def undone() -> None:
            for each in reversed(undo):
                each()
            self._plans = {}

        if isinstance(theirs, list) and len(theirs) == len(self.parts):
            try:
                for part, its in zip(self.parts, theirs, strict=True):
                    undo.append(part.follow(its))
            except BaseException:
                undone()
                raise
            self._plans = {}  # they are of other sizes
        return undone

    def described(self) -> dict[str, str]:
        """What a person wants to know of it."""
        urls = {f"dataset {number}": part.url for number, part in enumerate(self.parts)}
        more = {"shares": f"shares={self.shares}", "stop": f"stop={self.stop!r}"}
        rank = self.described_rank()
        if self.endless:
            samples = "endless"
        elif any(part.opening.known is None for part in self.parts):
            samples = "manifest not loaded"
        else:
            samples = counted(self.total, "sample") if rank["rank"] != "rank unknown" else "samples unknown"
        return urls | more | {"samples": samples} | rank

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plans": {}, "_source": None}


def _differ(one: object, other: object) -> bool:
    return one is not other


def _item_bytes(part: Stored) -> int:
    """The bytes of a sample, on average."""
    if isinstance(part, TokenContents):
        return part.item_bytes
    return part.manifest.raw_bytes // max(1, part.manifest.samples)


def _shuffle(parts: Sequence[Stored]) -> Shuffle | None:
    """What decides the lanes of a mixture; the order of each dataset is its own."""
    shuffles = [part.shuffle for part in parts if part.shuffle is not None]
    asked = {shuffle.lanes for shuffle in shuffles if shuffle.lanes is not None}
    if len(asked) > 1:
        raise OptionError(f"the datasets differ in lanes: {sorted(asked)}; a mixture has one number of lanes")
    return Shuffle(lanes=asked.pop() if asked else None) if shuffles else None
