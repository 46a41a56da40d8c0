"""One iteration over a dataset, which can be saved and restored by itself."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Protocol, TypeVar

from shardstream.counters.page import begin
from shardstream.dataset.collating import Sample
from shardstream.order.cursor import Run
from shardstream.read.handoff.process_bound import ProcessBound

__all__ = ["Iteration"]

T = TypeVar("T")


class _Items(Protocol):
    """What is iterated."""

    def deliver(self, run: Run) -> Generator[Any, None, None]: ...
    def leave(self, run: Run) -> None: ...
    def state_at(self, run: Run) -> dict[str, Any]: ...
    def restart(self, run: Run, state: Mapping[str, Any]) -> None: ...


class Iteration(ProcessBound[T]):
    """One epoch of a dataset, from some place on.

    torchdata's StatefulDataLoader saves and restores it; dropping or closing it ends its threads.
    """

    def __init__(self, items: _Items, run: Run, collated: bool = False) -> None:
        """collated: torch's default collate puts the samples together."""
        begin("reader", getattr(items, "url", ""))
        self._items, self._run, self._collated = items, run, collated
        super().__init__(items.deliver(run))

    def __next__(self) -> T:
        item: Any = super().__next__()
        if self._collated and type(item) is dict:
            item = Sample(item)
        # An interrupt is noticed at calls and at loops: there is none between this and the consumer.
        self._run.position = self._run.following
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """End it here."""
        super().close()
        self._items.leave(self._run)

    def state_dict(self) -> dict[str, Any]:
        """How far it came; an iteration that is over stays at its end."""
        return self._items.state_at(self._run)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same dataset."""
        self.close()
        self._items.restart(self._run, state)
        self.hold(self._items.deliver(self._run))
