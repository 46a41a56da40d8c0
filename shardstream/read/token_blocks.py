"""How the tokens of a shard are cut into blocks: one after another, or whole documents by best fit.

A shard is one stream of tokens, the documents of its frames one after another. A block is a row of
`seq_len` + 1 tokens, put together from pieces of that stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import CorruptionError, OptionError
from shardstream.format.index import ShardIndex
from shardstream.read.best_fit import best_fit

__all__ = ["BestFit", "BlockOptions", "Blocks", "Layout", "Pieces", "Stream", "cut"]

Ints = NDArray[np.int64]
_GROUP = 64  # blocks


@dataclass(frozen=True)
class BlockOptions:
    """What decides which tokens a block holds.

    seq_len: T; a block has T + 1 tokens.  pack: None, or "best-fit".  tail: whether the last, partial
    block of a shard is left out ("drop") or filled up ("pad"); best fit has none.
    """

    seq_len: int
    pack: str | None = None
    tail: str = "drop"

    def __post_init__(self) -> None:
        if isinstance(self.seq_len, bool) or not isinstance(self.seq_len, int) or self.seq_len < 1:
            raise OptionError(f"seq_len={self.seq_len!r} must be an int, at least 1")
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
        """How many blocks a stream of `tokens` gives where they follow one another."""
        left = max(0, tokens - 1)
        return left // self.seq_len if self.tail == "drop" else -(-left // self.seq_len)

    def stream_padding(self, tokens: int) -> int:
        """How many tokens of those blocks are padding."""
        return max(0, self.stream_blocks(tokens) * self.seq_len + 1 - tokens) if tokens > 1 else 0


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of one shard lie, in F frames and n documents.

    data: [F] byte offset of the tokens within the frame's raw bytes.  start: [F + 1] number of the
    frame's first token in the shard.  first: [F + 1] the frame's first document.  documents: [n + 1]
    number of each document's first token in the shard.
    """

    data: Ints
    start: Ints
    first: Ints
    documents: Ints

    @classmethod
    def of(cls, index: ShardIndex, column: int, itemsize: int, where: str) -> Layout:
        """The layout that an index gives. CorruptionError where a frame's documents do not lie together."""
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

    @property
    def tokens(self) -> int:
        """The tokens of the shard."""
        return int(self.start[-1])


class Pieces(NamedTuple):
    """What some rows are put together from, ordered by row and place in the row.

    Each piece lies in one frame, or begins in it and goes on in the next ones. All int64 [p].
    """

    row: Ints
    frame: Ints
    token: Ints  # number in the shard of its first token
    length: Ints


class Blocks:
    """The blocks of one shard: what the order and the plan of a batch need to know.

    layout: of the shard.  first: [G + 1] the first block of each of G groups, which the order permutes
    as it permutes frames.  count: blocks.  padding: tokens in them that are padding.  reads: [F] how
    many pieces of blocks each frame gives.
    """

    layout: Layout
    first: Ints
    reads: Ints
    count: int
    padding: int

    def pieces(self, numbers: Ints, joined: bool) -> Pieces:
        """The pieces of blocks; `joined` where a frame's buffer goes on with the tokens of the next."""
        raise NotImplementedError

    def segments(self, numbers: Ints) -> tuple[Ints, Ints]:
        """(row, column) where documents begin in the blocks; column 0 of each block is one, too."""
        raise NotImplementedError

    def used(self, numbers: Ints) -> Ints:
        """How many tokens of each block are no padding."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        arrays = (value for part in (self, self.layout) for value in vars(part).values())
        return sum(value.nbytes for value in arrays if isinstance(value, np.ndarray))


class Stream(Blocks):
    """Block b is tokens [b T, b T + T], so that neighbours share one: it is a target, then an input.

    A block belongs to the frame that holds its first token.
    """

    def __init__(self, layout: Layout, options: BlockOptions) -> None:
        self.layout, self._length = layout, options.seq_len
        self.count = options.stream_blocks(layout.tokens)
        self.first = np.minimum(-(-layout.start // options.seq_len), self.count)
        self.reads = np.diff(self.first)
        self.padding = options.stream_padding(layout.tokens)

    def pieces(self, numbers: Ints, joined: bool) -> Pieces:
        """One for each block; where frames are not joined, one for each frame that it lies in."""
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
        """Where documents begin after the block's first token, and before its end."""
        documents, token = self.layout.documents, numbers * self._length
        low = np.searchsorted(documents, token, side="right")
        high = np.searchsorted(documents, token + self.used(numbers), side="left")
        row, at = _ranges(low - 1, high)
        column = np.maximum(documents[at] - token[row], 0)
        # Empty documents begin where the next one does.
        new = np.ones(len(row), np.bool_)
        new[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1])
        return row[new], column[new]

    def used(self, numbers: Ints) -> Ints:
        """T + 1, but for the last block of a shard."""
        return np.minimum(self._length + 1, self.layout.tokens - numbers * self._length)


class BestFit(Blocks):
    """Documents whole in blocks where they fit, by best-fit-decreasing within groups of frames.

    A document of more than T + 1 tokens is cut into pieces of T + 1 as a stream would be, each with
    the last token of the one before. Frames are packed in groups of some dozens of blocks, so that
    a block needs the frames of one group and not those of the whole shard.
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
            # Numbered by their first tokens: the natural order then follows the data.
            _, first, place = np.unique(bins, return_index=True, return_inverse=True)
            rank = np.empty(len(first), np.int64)
            rank[np.argsort(first)] = np.arange(len(first), dtype=np.int64)
            block[begin:end] = rank[place] + firsts[-1]
            firsts.append(firsts[-1] + len(first))
        order = np.argsort(block, kind="stable")
        self.first, self.count = np.array(firsts, np.int64), firsts[-1]
        self.reads = np.bincount(frame, minlength=len(layout.data)).astype(np.int64)
        self.padding = self.count * (length + 1) - int(pieces.sum())
        self._frame, self._token, self._size = frame[order], token[order], pieces[order]
        self._bounds = np.searchsorted(block[order], np.arange(self.count + 1, dtype=np.int64))
        self._ends = np.concatenate(([0], np.cumsum(self._size)))

    @staticmethod
    def _groups(start: Ints, least: int) -> Ints:
        """The first frame of each group, then the number of frames."""
        firsts, last = [0], len(start) - 1
        while firsts[-1] < last:
            end = int(np.searchsorted(start, int(start[firsts[-1]]) + least))
            # What is left after it joins it, unless it makes a group of its own.
            firsts.append(end if end < last and int(start[-1] - start[end]) >= least else last)
        return np.array(firsts, np.int64)

    def pieces(self, numbers: Ints, joined: bool) -> Pieces:
        """The documents, or pieces of long ones, of each block; each lies within one frame."""
        row, at = _ranges(self._bounds[numbers], self._bounds[numbers + 1])
        return Pieces(row, self._frame[at], self._token[at], self._size[at])

    def segments(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Where the pieces begin."""
        row, at = _ranges(self._bounds[numbers], self._bounds[numbers + 1])
        return row, self._ends[at] - self._ends[self._bounds[numbers]][row]

    def used(self, numbers: Ints) -> Ints:
        """The sum of the pieces."""
        return self._ends[self._bounds[numbers + 1]] - self._ends[self._bounds[numbers]]


def cut(layout: Layout, options: BlockOptions) -> Blocks:
    """The blocks of a shard."""
    return Stream(layout, options) if options.pack is None else BestFit(layout, options)


def _ranges(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """(which range, number) for every number of the ranges [begin, end)."""
    many = end - begin
    owner = np.repeat(np.arange(len(many), dtype=np.int64), many)
    return owner, np.arange(len(owner), dtype=np.int64) + np.repeat(begin - (np.cumsum(many) - many), many)
