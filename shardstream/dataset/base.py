"""What all datasets have in common, as a user sees it: a place in an order, and the state that says so."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic

from shardstream.dataset.argument_errors import item_number
from shardstream.dataset.collating import by_default_collate, in_data_loader
from shardstream.dataset.contents import Contents
from shardstream.dataset.item_reader import ItemReader
from shardstream.dataset.iteration import Iteration
from shardstream.dataset.notebook import as_html
from shardstream.dataset.states import accept, state_at
from shardstream.dataset.worker_cursor import WorkerCursor
from shardstream.dataset.wrappers import refuse_wrappers
from shardstream.errors import StateError
from shardstream.format.shown import one_line
from shardstream.order.cursor import Run
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.order.topology import rank_samples
from shardstream.storage.cache.options import Cache

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset as _Iterable
    from typing_extensions import Self, TypeVar

    T_co = TypeVar("T_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    T_co = TypeVar("T_co", covariant=True)
    try:
        # DataLoader recognises an iterable dataset by this class and by nothing else.
        from torch.utils.data import IterableDataset as _Iterable
    except ImportError:

        class _Iterable(Generic[T_co]):
            """In place of torch's."""


__all__ = ["OrderedDataset", "contents_of", "place_of"]


class OrderedDataset(_Iterable[T_co]):
    """Items at positions 0 .. total - 1 of each epoch: what StreamingDataset, TokenDataset, their subsets and
    Mixture have in common.

    Iterating gives this rank's items of one epoch; iterating again is the next epoch. `len(ds)` is the number
    of this rank's items in an epoch.
    """

    def __init__(self, contents: Contents[Any]) -> None:
        contents.kind = type(self).__name__
        self._contents = contents
        self._cursor = WorkerCursor()

    @property
    def url(self) -> str:
        """Where the dataset is, without passwords."""
        return self._contents.url

    @property
    def shuffle(self) -> Shuffle | None:
        """How the order is shuffled; None for the natural order."""
        return self._contents.shuffle

    @property
    def cache(self) -> Cache:
        """Where bytes stay."""
        return self._contents.cache

    @property
    def topology(self) -> Ranks:
        """The place among the data-parallel ranks; "auto" is asked until the dataset is first used."""
        return self._contents.topology

    @property
    def total(self) -> int:
        """The items of an epoch, of all ranks."""
        return self._contents.total

    @property
    def endless(self) -> bool:
        """Whether an epoch never ends: it has no length then."""
        return self._contents.endless

    def __len__(self) -> int:
        """How many items of an epoch this rank gets; `total` is those of all ranks."""
        if self.endless:
            raise TypeError(f"an epoch of {self.url} never ends: it has no length")
        ranks = self._contents.decide()
        return rank_samples(self.total, ranks.dp_rank, ranks.dp_size)

    def __iter__(self) -> Iteration[T_co]:
        refuse_wrappers(self.url, self._contents.decide())
        # A DataLoader gives no other sign of itself in its own process.
        caller = sys._getframe(1)  # noqa: SLF001
        # It cannot pickle views, and what it does to sequences it does to the bytes of a view.
        plain = self._contents.maker.views and in_data_loader(caller)
        items = ItemReader(self._contents, self._cursor, plain)
        run = items.begin()
        gaps = by_default_collate(caller)
        return self._cursor.follow(Iteration(items, run, gaps), run)

    def _numbered(self, item: object) -> int:
        return item_number(item, self.total, self.url)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate, also in worker processes that already run.

        Args:
            epoch: At least 0 and less than 2**64.

        Raises:
            OptionError: It is no such number.
        """
        # Wrappers call it where they begin, before there are workers in which nothing shows who asked.
        refuse_wrappers(self.url, self.topology)
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What was delivered by iterating the dataset.

        In a DataLoader's worker process it is the state of that worker.

        Returns:
            A small dict that JSON can hold, for `load_state_dict`.

        Raises:
            StateError: Workers of a DataLoader deliver. Only their DataLoader could know how far they came.
        """
        if self._cursor.away:
            raise StateError(
                f"{self.url} is being read by the workers of a DataLoader, which does not tell how far they "
                f"came; use a StreamingLoader, or torchdata's StatefulDataLoader and its state_dict()"
            )
        return state_at(self._contents, self._cursor.now)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of this dataset.

        Args:
            state: What `state_dict` gave, with any number of ranks. The state of a worker process is for the
                same worker of as many.

        Raises:
            StateError: It belongs to another dataset or another order.
        """
        self._cursor.place(*accept(self._contents, state, worker=True))

    def __copy__(self) -> Self:
        found = object.__new__(type(self))
        vars(found).update(vars(self), _contents=copy.copy(self._contents))
        return found

    def __repr__(self) -> str:
        return one_line(type(self).__name__, [repr(self.url), *self._contents.described().values()])

    def _repr_html_(self) -> str:
        return as_html(type(self).__name__, self._contents)


def contents_of(ds: OrderedDataset[Any]) -> Contents[Any]:
    """What is read of a dataset: the internal object that the other packages work with."""
    return ds._contents  # noqa: SLF001 - this is the one door to it


def place_of(ds: OrderedDataset[Any]) -> Run:
    """Where the dataset itself is: the first position that is not delivered, and its epoch."""
    return ds._cursor.now  # noqa: SLF001
