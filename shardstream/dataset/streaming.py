"""A stream of batches of a dataset: its requests become units, the read engine builds them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

from shardstream.dataset.access_plan import AccessPlan
from shardstream.dataset.batch_maker import Finish
from shardstream.dataset.collating import finishing, with_padding
from shardstream.dataset.contents import Contents
from shardstream.dataset.delivery import Delivery, counted
from shardstream.dataset.global_random import attended
from shardstream.dataset.requests import Request, UnitOptions, split
from shardstream.order.cursor import EPOCHS
from shardstream.read.engine import pipeline
from shardstream.read.engine.following import Following, KeptFrames
from shardstream.read.engine.stats import Stats
from shardstream.read.engine.units import Budget, Source, Unit

__all__ = ["stream"]

OrderT = TypeVar("OrderT")  # the order of one epoch


def stream(
    contents: Contents[OrderT],
    epoch: int,
    requests: Iterable[Request],
    finish: Finish,
    budget: Budget,
    stats: Stats | None = None,
    options: UnitOptions | None = None,
    *,
    source: Source | None = None,
    padded: tuple[int, Finish] | None = None,
    singles: bool = False,
    following: tuple[KeptFrames, Callable[[], Iterable[Request]], int] | None = None,
) -> Generator[Any, None, None]:
    """The batches of all requests, in order.

    Args:
        contents: The dataset.
        epoch: Of it.
        requests: What is read.
        finish: Makes each batch of what a unit builds. It is called in threads; if it is quick and
            `options.direct` is set, by the consumer.
        budget: How much may be ahead.
        stats: Counts.
        options: How the work is cut.
        source: Where frames come from, if not from the dataset's own source.
        padded: The number of the batch that has padding, and the `finish` for that one.
        singles: In front of an error items come one by one, up to the one that fails.
        following: What will be read of the epoch after this one, and where its first frames stay until then;
            how many batches this one has.
    """
    source, chosen = source or contents.source, options or UnitOptions()
    if padded is not None:
        finish = finishing(finish, padded[1])

    def units(order: OrderT, requests: Iterable[Request]) -> Iterator[Unit]:
        made = _planned(contents, order, requests, chosen, singles)
        return made if padded is None else with_padding(made, padded[0])

    if contents.remote:
        delivery, plan = Delivery(), AccessPlan(contents, epoch)
        contents.tell_needs(plan, delivery, budget.keep)
        made = units(plan.order, plan.requests(requests, delivery))
        built = counted(pipeline.stream(source, made, finish, budget, stats, singles), delivery)
    else:
        made = units(contents.order(epoch), requests)
        after = None if following is None else _after(contents, epoch + 1, *following, chosen)
        built = pipeline.stream(source, made, finish, budget, stats, singles, after, near=True)
    return attended(built, contents.maker.watching) if contents.maker.transforms else built


def _after(
    contents: Contents[OrderT],
    epoch: int,
    kept: KeptFrames,
    requests: Callable[[], Iterable[Request]],
    batches: int,
    options: UnitOptions,
) -> Following | None:
    """What follows: another epoch."""
    if epoch >= EPOCHS:
        return None
    return Following(kept, lambda: iter(contents.units(contents.order(epoch), requests(), options)), batches)


def _planned(
    contents: Contents[OrderT],
    order: OrderT,
    requests: Iterable[Request],
    options: UnitOptions,
    singles: bool,
) -> Iterator[Unit]:
    """The work for all requests; of one that cannot be planned, for as much of it as can be."""
    for request in requests:
        try:
            units = list(contents.units(order, [request], options))
        except Exception:
            parts = split(request, singles)
            if not parts:
                raise
            yield from _planned(contents, order, parts, options, singles)
        else:
            yield from units
