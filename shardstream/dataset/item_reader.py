"""The items of a dataset one by one, as iterating the dataset itself gives them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

from shardstream.dataset.contents import Contents
from shardstream.dataset.requests import UnitOptions, requests_of
from shardstream.dataset.states import accept, state_at
from shardstream.dataset.streaming import stream
from shardstream.dataset.worker_epochs import current_worker
from shardstream.order.cursor import Cursor, Run
from shardstream.order.topology import Topology as Ranks
from shardstream.read.engine.units import Budget

__all__ = ["ItemReader"]


class ItemReader:
    """Reads the items of this rank, or of this worker process of it.

    Args:
        contents: The dataset.
        cursor: The place at which iterations start, and to which they came.
        plain: Whether bytes are given where values are views of memory.
    """

    def __init__(self, contents: Contents[Any], cursor: Cursor, plain: bool = False) -> None:
        self._contents, self._cursor, self._plain = contents, cursor, plain

    def begin(self) -> Run:
        """Begin an iteration; gives its place."""
        run = self._cursor.begin(self._contents.start().dp_size)
        self._take_turn(run)
        return run

    def _take_turn(self, run: Run) -> None:
        """In a worker process, go from the rank's place to the next item of the worker alone."""
        worker = current_worker()
        if worker is not None and not run.own:
            # Counted from the rank's next item, so that taking one of each worker in turn, as a
            # DataLoader does, gives the rank's order.
            mine = self._contents.topology
            first = mine.first(run.position) + mine.dp_size * worker.number
            run.position, run.own = min(first, self._contents.total), True

    def deliver(self, run: Run) -> Generator[Any, None, None]:
        """The items from the place of `run` on.

        The consumer sets `run.position` to `run.following` as the last step before it has an item.
        """
        contents = self._contents.without_views() if self._plain else self._contents
        mine, total, maker = contents.topology, contents.total, contents.maker
        budget = Budget(keep=contents.cache.ram_for_frames)
        worker = current_worker()
        if worker is not None:
            budget = replace(budget, threads=1) if worker.size > 1 else budget
            stride = mine.dp_size * worker.size
            mine = Ranks(run.position % stride, stride)
        requests = requests_of(mine, run.position, total, contents.planned_at_once)
        direct = UnitOptions(direct=True)
        built = stream(contents, run.epoch, requests, maker.singles, budget, None, direct, singles=True)
        try:
            for batch, error in built:
                for item in maker.items(batch):
                    run.following = min(run.position + mine.dp_size, total)
                    yield item
                    while run.position != run.following:  # an interrupt came before it was handed over
                        yield item
                del batch
                if error is not None:
                    raise error
            run.position = total
            self._cursor.end(run)
        finally:
            built.close()
            self._cursor.leave(run)

    def leave(self, run: Run) -> None:
        """An iteration is closed."""
        self._cursor.leave(run)

    def state_at(self, run: Run) -> dict[str, Any]:
        """The state that says: the place of `run` is the next to deliver."""
        return state_at(self._contents, run)

    def restart(self, run: Run, state: Mapping[str, Any]) -> None:
        """Let an iteration that has begun go on from a state."""
        self._cursor.restart(run, *accept(self._contents, state, worker=True))
        self._take_turn(run)
