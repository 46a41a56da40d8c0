"""What datasets that can be narrowed to a subset have in common: the selection of samples or documents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.opening import Opening
from shardstream.dataset.stored import StoredContents
from shardstream.dataset.subset import Choice, select
from shardstream.order.reuse import Share
from shardstream.order.selection import Selection
from shardstream.order.shuffle import Shuffle
from shardstream.read.engine.units import Source

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SelectedContents"]

Ints = NDArray[np.int64]
S = TypeVar("S", bound=Source, covariant=True)


class SelectedContents(StoredContents[S]):
    """The items of one dataset in a store, of all its samples or of those that were chosen.

    Args:
        opening, shuffle, rank, function: See `StoredContents`.
    """

    def __init__(
        self,
        opening: Opening,
        shuffle: Shuffle | None,
        rank: DatasetRank,
        function: Callable[..., Any] | None,
    ) -> None:
        super().__init__(opening, shuffle, rank, function)
        self._selection: Selection | None = None
        self._consulted: tuple[int, ...] = ()  # the shards whose indexes the selection was made by
        # What made the selection, to make it again of an older manifest; None if that is not known.
        self._chosen: tuple[Choice, ...] | None = ()

    def _select(self) -> None:
        """Make the selection again, of the manifest as it is now."""
        self._selection, self._consulted = None, ()
        for choice in self._chosen or ():
            self._selection, self._consulted = self._narrowed(choice)

    def narrowed(self, choice: Choice) -> Self:
        """The items of the samples of these that a choice names. The reader is shared."""
        selection, consulted = self._narrowed(choice)
        found = copy.copy(self)
        vars(found).update(
            opening=self.opening,
            _chosen=None if self._chosen is None else (*self._chosen, choice),
            _lanes=None if self.shuffle is None else self.shuffle.lanes,
            _consulted=consulted,
            _selection=selection,
        )
        return found

    def _narrowed(self, choice: Choice) -> tuple[Selection, tuple[int, ...]]:
        """What a choice leaves of the selection, and the shards whose indexes were looked at for it."""
        selection, asked = self._selection, set(self._consulted)
        if choice.numbers is None:
            asked |= set(range(len(self.manifest.shards)) if selection is None else selection.shards())
        return select(self.reader, selection, choice), tuple(sorted(asked))

    @property
    def chosen_samples(self) -> int:
        """How many samples or documents take part."""
        return self.manifest.samples if self._selection is None else self._selection.total

    def place_of_sample(self, number: int) -> tuple[int, int]:
        """(shard, number in the shard) of a sample or document, by its number among those that take part."""
        if self._selection is None:
            return self.reader.locate(number)
        shards, samples = self._selection.locate(np.array([number], np.int64))
        chosen = self._selection.chosen(int(shards[0]))
        return int(shards[0]), int(samples[0] if chosen is None else chosen[samples[0]])

    @property
    def consulted(self) -> Iterable[int]:
        """The shards whose indexes are read to find the samples of a subset."""
        return self._consulted

    def share(self, shard: int) -> Share | None:
        """The frames of a shard that hold samples of a subset; None for a whole dataset."""
        chosen = None if self._selection is None else self._selection.chosen(shard)
        if chosen is None:
            return None
        info, index = self.manifest.shards[shard], self.reader.loaded_index(shard)
        if index is None:  # it takes all frames to hold equally many samples
            first = np.arange(info.frames + 1, dtype=np.int64) * info.samples // max(1, info.frames)
        else:
            first = np.asarray(index.frame_first).astype(np.int64)
        bounds = np.searchsorted(chosen, first)
        frames = np.flatnonzero(np.diff(bounds))
        return Share(frames, np.append(bounds[frames], len(chosen)))

    def follow(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Read the dataset as it was for a state, if the cache has that manifest; returns what undoes it."""
        return super().follow(state if self._chosen is not None else {})

    def __getstate__(self) -> dict[str, Any]:
        # Predicates may be such as cannot be sent to another process.
        return super().__getstate__() | {"_chosen": () if self._selection is None else None}

    def identity(self) -> dict[str, Any]:
        """What a state must agree with; the fingerprint covers the selection."""
        mine = super().identity()
        if self._selection is not None:
            mine["fingerprint"] += f"/subset-{self._selection.digest}"
        return mine
