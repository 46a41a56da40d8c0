"""A block of samples whose fields are bytes of Python."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import TYPE_CHECKING

from shardstream.format.columns import ColumnValue
from shardstream.format.headers import BLOCK
from shardstream.packing.sources.base import Reject, Sample
from shardstream.packing.sources.block import Block
from shardstream.packing.tally import Tally

if TYPE_CHECKING:
    from shardstream.packing.open_frame import Fields, OpenFrame

__all__ = ["ListBlock"]


@dataclass(frozen=True, eq=False)
class ListBlock(Block):
    """Samples of a few MiB; see `Block`.

    Args:
        keys: Their keys.
        fields: Of each field the bytes, one for each sample.
        samples, columns: See `Block`.
    """

    keys: list[str]
    fields: Mapping[str, Sequence[bytes]]
    samples: Callable[[], Iterator[Sample | Reject]]
    columns: Mapping[str, Sequence[ColumnValue | None]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.fields)

    def lay_out(self) -> _Layout:
        return _Layout(self.keys, self.fields)

    def count(self, tally: Tally) -> None:
        data = list(itertools.chain.from_iterable(zip(*self.fields.values(), strict=True)))
        tally.add_cells(self.names, list(map(str.encode, self.keys)), iter(data), list(map(len, data)))


class _Layout:
    def __init__(self, keys: Sequence[str], fields: Mapping[str, Sequence[bytes]]) -> None:
        self._keys, self._width = list(map(str.encode, keys)), len(fields)
        self._data = list(itertools.chain.from_iterable(zip(*fields.values(), strict=True)))
        self._sizes = list(map(len, self._data))
        # Of each field its header, its data and the zeros up to a whole block.
        rooms = [(size + 2 * BLOCK - 1) & -BLOCK for size in self._sizes]
        totals: Iterable[int] = rooms[:: self._width]
        for column in range(1, self._width):
            totals = map(add, totals, rooms[column :: self._width])
        self.ends = list(itertools.accumulate(totals))

    def add_to(self, frame: OpenFrame, fields: Fields, begin: int, end: int) -> int:
        cells = slice(begin * self._width, end * self._width)
        sizes, total = self._sizes[cells], self.ends[end - 1] - (self.ends[begin - 1] if begin else 0)
        frame.add_usual(self._keys[begin:end], fields, self._data[cells], sizes, total)
        return sum(sizes)
