"""One iteration over a dataset, which can be saved and restored by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from shardstream.order.cursor import Run

if TYPE_CHECKING:
    from shardstream.dataset.base import OrderedDataset

__all__ = ["Iteration"]


class Iteration(Iterator[Any]):
    """One epoch of a dataset, from some place on.

    torchdata's StatefulDataLoader saves and restores it; dropping or closing it ends its threads.
    """

    def __init__(self, ds: OrderedDataset, run: Run) -> None:
        self._ds, self._run = ds, run
        self._items = ds.deliver(run)

    def __next__(self) -> Any:
        return next(self._items)

    def close(self) -> None:
        """End it here."""
        self._items.close()

    def state_dict(self) -> dict[str, Any]:
        """How far it came; an iteration that is over stays at its end."""
        return self._ds.state_at(self._run)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same dataset."""
        self._items.close()
        self._ds.restart(self._run, state)
        self._items = self._ds.deliver(self._run)
