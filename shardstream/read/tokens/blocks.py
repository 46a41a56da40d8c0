"""How the tokens of a shard are cut into blocks: one after another, or whole documents by best fit.

A shard is one stream of tokens: the documents of its frames, one after another. A block is a row of
`seq_len` + 1 tokens, made of pieces of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.order.lanes import in_order
from shardstream.read.tokens.best_fit import best_fit
from shardstream.read.tokens.layout import Layout

__all__ = ["BestFit", "BlockOptions", "Blocks", "Pieces", "Stream", "cut"]

Ints = NDArray[np.int64]
_GROUP = 64  # blocks


@dataclass(frozen=True)
class BlockOptions:
    """What decides which tokens a block holds.

    Args:
        seq_len: T, at least 1. A block has T + 1 tokens.
        pack: None cuts the stream into blocks, one after another. "best-fit" puts whole documents into
            blocks.
        tail: What happens to the last tokens of a shard, which do not fill a block: "drop" leaves them out,
            and "pad" fills the block with padding. Only without `pack`.

    Raises:
        OptionError: A value is wrong, or two values do not go together.
    """

    seq_len: int
    pack: Literal["best-fit"] | None = None
    tail: Literal["drop", "pad"] = "drop"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seq_len", whole_number("seq_len", self.seq_len, 1))
        if self.pack not in (None, "best-fit"):
            raise OptionError(f"pack={self.pack!r} must be None or 'best-fit'")
        if self.tail not in ("drop", "pad"):
            raise OptionError(f"tail={self.tail!r} must be 'drop' or 'pad'")
        if self.pack is not None and self.tail != "drop":
            raise OptionError(f"tail={self.tail!r} has no meaning with pack={self.pack!r}: it drops nothing")

    @property
    def padded(self) -> bool:
        """Whether blocks may hold padding."""
        return self.pack is not None or self.tail == "pad"

    def stream_blocks(self, tokens: int) -> int:
        """How many blocks a stream of `tokens` tokens gives, if blocks follow one another."""
        left = max(0, tokens - 1)
        return left // self.seq_len if self.tail == "drop" else -(-left // self.seq_len)

    def stream_padding(self, tokens: int) -> int:
        """How many tokens of the blocks of such a stream are padding."""
        return max(0, self.stream_blocks(tokens) * self.seq_len + 1 - tokens) if tokens > 1 else 0


class Pieces(NamedTuple):
    """The p pieces of some rows, ordered by row and by place in the row. All arrays are int64 [p].

    Attributes:
        row: The row of each piece.
        frame: The frame in which each piece begins. It may go on in the next frames.
        token: The number of each piece's first token in the shard.
        length: How many tokens each piece has.
    """

    row: Ints
    frame: Ints
    token: Ints
    length: Ints


class Blocks:
    """The blocks of one shard: what the order and the plan of a batch need to know.

    Attributes:
        layout: Of the shard.
        first: int64 [G + 1], the first block of each of G groups, then the number of blocks.
        groups: The same without groups in which no document is chosen. The order permutes groups as it
            permutes frames.
        reads: int64 [F], how many pieces of blocks lie in each frame.
        beyond: int64 [F], how many tokens behind a frame belong to blocks that begin in this frame.
        count: How many blocks there are.
        padding: How many tokens of all blocks are padding.
    """

    layout: Layout
    first: Ints
    groups: Ints
    reads: Ints
    beyond: Ints
    count: int
    padding: int

    def pieces(self, numbers: Ints, joined: bool) -> Pieces:
        """The pieces of blocks.

        Args:
            numbers: int64 [n], the blocks.
            joined: Whether the buffer of a frame goes on with the tokens of the next frames. Then a block
                that crosses frames is one piece.
        """
        raise NotImplementedError

    def read_with(self, frames: Ints) -> Ints:
        """`frames`, each followed by the frames that hold the tokens beyond it; each frame once."""
        start, last = self.layout.start, len(self.layout.data) - 1
        end = np.searchsorted(start, start[frames + 1] + self.beyond[frames], side="left") - 1
        end = np.where(self.beyond[frames] > 0, np.minimum(end, last), frames)
        _, found = _ranges(frames, end + 1)
        return in_order(found[start[found + 1] > start[found]])

    def segments(self, numbers: Ints) -> tuple[Ints, Ints]:
        """(row, column) of the tokens at which documents begin in the blocks. Column 0 always counts."""
        raise NotImplementedError

    def used(self, numbers: Ints) -> Ints:
        """How many tokens of each block are not padding, int64."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays."""
        arrays = (value for part in (self, self.layout) for value in vars(part).values())
        return sum(value.nbytes for value in arrays if isinstance(value, np.ndarray))


class Stream(Blocks):
    """Blocks that follow one another: block b is the tokens b T to b T + T.

    Neighbours share one token. It is a target in the first block, and an input in the second. A block belongs
    to the frame that holds its first token.

    Args:
        layout: Of the shard.
        options: How to cut.
    """

    def __init__(self, layout: Layout, options: BlockOptions) -> None:
        self.layout, self._length = layout, options.seq_len
        self.count = options.stream_blocks(layout.tokens)
        self.first = np.minimum(-(-layout.start // options.seq_len), self.count)
        self.groups = self.first
        if layout.places is not None:
            self.groups = np.append(self.first[:-1][np.diff(layout.first) > 0], self.count)
        self.reads = np.diff(self.first)
        self.padding = options.stream_padding(layout.tokens)
        ends = np.minimum(self.first[1:] * options.seq_len + 1, layout.tokens)
        self.beyond = np.where(self.reads > 0, np.maximum(ends - layout.start[1:], 0), 0)

    def pieces(self, numbers: Ints, joined: bool) -> Pieces:
        """One piece for each block; if frames are not joined, one for each frame in which the block lies."""
        start, token = self.layout.start, numbers * self._length
        begin, end = np.searchsorted(self.first, numbers, side="right") - 1, token + self.used(numbers)
        row = np.arange(len(numbers), dtype=np.int64)
        if joined or (end <= start[begin + 1]).all():
            return Pieces(row, begin, token, end - token)
        many = np.searchsorted(start, end, side="left") - begin
        row = np.repeat(row, many)
        frame = np.repeat(begin - (np.cumsum(many) - many), many) + np.arange(len(row), dtype=np.int64)
        token = np.maximum(token[row], start[frame])
        length = np.minimum(end[row], start[frame + 1]) - token
        some = length > 0  # a frame may hold nothing but empty documents
        return Pieces(row[some], frame[some], token[some], length[some])

    def segments(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Where documents begin, from the first token of each block to its end; column 0 always counts."""
        documents, token = self.layout.documents, numbers * self._length
        low = np.searchsorted(documents, token, side="right")
        high = np.searchsorted(documents, token + self.used(numbers), side="left")
        row, at = _ranges(low - 1, high)
        column = np.maximum(documents[at] - token[row], 0)
        # An empty document begins at the same token as the next document, and must not count twice.
        new = np.ones(len(row), np.bool_)
        new[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1])
        return row[new], column[new]

    def used(self, numbers: Ints) -> Ints:
        """T + 1 for each block; fewer for the last block of a shard."""
        return np.minimum(self._length + 1, self.layout.tokens - numbers * self._length)


class BestFit(Blocks):
    """Blocks of whole documents, by best-fit-decreasing within groups of frames.

    A document of more than T + 1 tokens is cut into pieces of T + 1 tokens. Each piece begins with the last
    token of the piece before, as in a stream. A group of frames has some dozens of blocks. So a block needs
    the frames of one group, and not those of the whole shard.

    Args:
        layout: Of the shard.
        options: How to cut.
    """

    def __init__(self, layout: Layout, options: BlockOptions) -> None:
        self.layout = layout
        length = options.seq_len
        sizes = np.diff(layout.documents)
        document = np.flatnonzero(sizes)
        many = np.maximum(1, -(-(sizes[document] - 1) // length))
        owner, number = _ranges(np.zeros_like(many), many)
        document = document[owner]
        token = layout.documents[document] + number * length
        pieces = np.minimum(length + 1, layout.documents[document + 1] - token)
        frame = np.searchsorted(layout.first, document, side="right") - 1
        groups = self._groups(layout.start, length * _GROUP)
        group = np.searchsorted(groups, frame, side="right") - 1
        bounds = np.searchsorted(group, np.arange(len(groups), dtype=np.int64))
        firsts, block = [0], np.empty(len(pieces), np.int64)
        for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            bins = best_fit(pieces[begin:end], length + 1)
            # Blocks are numbered by their first tokens, so that the natural order follows the data.
            _, first, place = np.unique(bins, return_index=True, return_inverse=True)
            rank = np.empty(len(first), np.int64)
            rank[np.argsort(first)] = np.arange(len(first), dtype=np.int64)
            block[begin:end] = rank[place] + firsts[-1]
            firsts.append(firsts[-1] + len(first))
        order = np.argsort(block, kind="stable")
        self.first, self.count = np.array(firsts, np.int64), firsts[-1]
        self.groups = self.first
        self.reads = np.bincount(frame, minlength=len(layout.data)).astype(np.int64)
        self.beyond = np.zeros(len(layout.data), np.int64)
        self.padding = self.count * (length + 1) - int(pieces.sum())
        self._frame, self._token, self._size = frame[order], token[order], pieces[order]
        self._bounds = np.searchsorted(block[order], np.arange(self.count + 1, dtype=np.int64))
        self._ends = np.concatenate(([0], np.cumsum(self._size)))

    @staticmethod
    def _groups(start: Ints, least: int) -> Ints:
        """The first frame of each group, then the number of frames. A group has at least `least` tokens."""
        firsts, last = [0], len(start) - 1
        while firsts[-1] < last:
            end = int(np.searchsorted(start, int(start[firsts[-1]]) + least))
            # If the frames behind this group have too few tokens for a group, they join this one.
            firsts.append(end if end < last and int(start[-1] - start[end]) >= least else last)
        return np.array(firsts, np.int64)

    def pieces(self, numbers: Ints, joined: bool) -> Pieces:
        """The documents of each block, or pieces of long documents. Each lies within one frame."""
        row, at = _ranges(self._bounds[numbers], self._bounds[numbers + 1])
        return Pieces(row, self._frame[at], self._token[at], self._size[at])

    def segments(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Where the pieces of each block begin."""
        row, at = _ranges(self._bounds[numbers], self._bounds[numbers + 1])
        return row, self._ends[at] - self._ends[self._bounds[numbers]][row]

    def used(self, numbers: Ints) -> Ints:
        """The sum of the lengths of each block's pieces."""
        return self._ends[self._bounds[numbers + 1]] - self._ends[self._bounds[numbers]]


def cut(layout: Layout, options: BlockOptions) -> Blocks:
    """The blocks of a shard with this layout."""
    return Stream(layout, options) if options.pack is None else BestFit(layout, options)


def _ranges(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """(which range, number) for every number of the ranges [begin, end)."""
    many = end - begin
    owner = np.repeat(np.arange(len(many), dtype=np.int64), many)
    return owner, np.arange(len(owner), dtype=np.int64) + np.repeat(begin - (np.cumsum(many) - many), many)
