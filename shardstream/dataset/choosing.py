"""Datasets of which a subset can be chosen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from shardstream.dataset.base import OrderedDataset
from shardstream.dataset.columns import Columns
from shardstream.dataset.selected import SelectedContents
from shardstream.dataset.subset import Choice
from shardstream.dataset.worker_cursor import WorkerCursor

if TYPE_CHECKING:
    from typing_extensions import Self, TypeVar

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["ChoosableDataset"]


class ChoosableDataset(OrderedDataset[T]):
    """What StreamingDataset and TokenDataset have in common: a subset can be chosen of them."""

    _contents: SelectedContents[Any]

    def subset(
        self,
        keys: Iterable[str] | None = None,
        numbers: ArrayLike | None = None,
        where: Callable[[Columns], ArrayLike] | None = None,
    ) -> Self:
        """A dataset of some of the samples alone, chosen by one of the arguments.

        The samples of a TokenDataset are its documents. Its blocks are then made of the documents that are
        chosen, as if no others had been packed.

        The order is made of the samples that are chosen. `keys` and `where` read all indexes once. Frames
        and shards of which nothing is chosen are never read. States are of this selection alone.

        Args:
            keys: The keys of the samples.
            numbers: Their numbers in the natural order, whole numbers [n].
            where: A predicate, called with the `Columns` of the index of each shard: bool [n], True for the
                samples to choose. `lambda c: c["lang"] == "en"` asks for a column that was packed with
                `keep`.

        Returns:
            A dataset of the same kind and options.

        Raises:
            OptionError: None or several of the arguments are given, or a sample that there is not; nothing is
                chosen, or too few tokens for one block.
        """
        keys = list(keys) if isinstance(keys, Iterable) and not isinstance(keys, (str, bytes)) else keys
        numbers = None if numbers is None else np.array(numbers)
        found = copy.copy(self)
        chosen = self._contents.narrowed(Choice(keys, numbers, where))
        vars(found).update(_contents=chosen, _cursor=WorkerCursor())
        return found
