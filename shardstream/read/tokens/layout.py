"""Where the tokens of one shard lie: of all its documents, or of those that were chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError
from shardstream.format.index import ShardIndex

__all__ = ["Layout"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of one shard lie, in F frames and n documents. All arrays are int64.

    If only some documents are chosen, all numbers count these alone, as if there were no others; and a frame
    in memory has their tokens together, from where its first document began.

    Attributes:
        data: [F], where the tokens begin in the raw bytes of each frame, in bytes.
        start: [F + 1], the number of each frame's first token in the shard; then the number of all tokens.
        first: [F + 1], the number of each frame's first document; then the number of all documents.
        documents: [n + 1], the number of each document's first token in the shard; then that of all tokens.
        places: [n], where each document begins in the raw bytes of its frame, in bytes; None if all documents
            are chosen.
    """

    data: Ints
    start: Ints
    first: Ints
    documents: Ints
    places: Ints | None = None

    @classmethod
    def of(cls, index: ShardIndex, column: int, itemsize: int, where: str) -> Layout:
        """The layout of a shard.

        Args:
            index: The index of the shard.
            column: The column of the tokens in the index.
            itemsize: The bytes of a token.
            where: The shard, for messages.

        Raises:
            CorruptionError: The documents of a frame do not lie one after another.
        """
        offset = np.asarray(index.field_offset)[:, column].astype(np.int64)
        size = np.asarray(index.field_size)[:, column].astype(np.int64)
        bounds = np.asarray(index.frame_first).astype(np.int64)
        data = offset[bounds[:-1]]
        apart = offset[:-1] + size[:-1] != offset[1:]
        apart[bounds[1:-1] - 1] = False
        if (size < 0).any() or (size % itemsize).any() or (data % itemsize).any() or apart.any():
            raise CorruptionError(f"{where}: the documents of a frame do not lie together; repack it")
        documents = np.zeros(len(size) + 1, np.int64)
        np.cumsum(size // itemsize, out=documents[1:])
        return cls(data, documents[bounds], bounds, documents)

    def of_documents(self, index: ShardIndex, column: int, chosen: Ints) -> Layout:
        """The layout of some documents alone.

        Args:
            index: The index of the shard.
            column: The column of the tokens in the index.
            chosen: The numbers of the documents, rising.
        """
        documents = np.concatenate(([0], np.cumsum(np.diff(self.documents)[chosen])))
        first = np.searchsorted(chosen, self.first)
        places = np.asarray(index.field_offset)[chosen, column].astype(np.int64)
        return Layout(self.data, documents[first], first, documents, places)

    @property
    def tokens(self) -> int:
        """The tokens of the shard."""
        return int(self.start[-1])

    def runs(self, frame: int, most: int, itemsize: int) -> tuple[Ints, Ints] | None:
        """(first byte, tokens) of the runs that the first tokens of the chosen documents of a frame lie in.

        Args:
            frame: The number of the frame.
            most: How many tokens are asked for. The last run may have more.
            itemsize: The bytes of a token.

        Returns:
            None if they lie together from `data` on.
        """
        if self.places is None:
            return None
        begin, end = int(self.first[frame]), int(self.first[frame + 1])
        bounds = self.documents[begin : end + 1] - self.documents[begin]
        many = int(np.searchsorted(bounds, most, side="left"))
        places, sizes = self.places[begin : begin + many], np.diff(bounds)[:many]
        some = sizes > 0
        places, sizes = places[some], sizes[some]
        new = np.ones(len(places), np.bool_)
        new[1:] = places[:-1] + sizes[:-1] * itemsize != places[1:]
        if not len(places) or (int(new.sum()) == 1 and int(places[0]) == int(self.data[frame])):
            return None
        at = np.flatnonzero(new)
        return places[at], np.add.reduceat(sizes, at)
