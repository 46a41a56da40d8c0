"""Samples that come many at once, which costs less than one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from shardstream.format.columns import ColumnValue
from shardstream.packing.sources.base import Reject, Sample

if TYPE_CHECKING:
    from shardstream.packing.open_frame import Fields, OpenFrame
    from shardstream.packing.tally import Tally

__all__ = ["Block", "BlockLayout"]


class BlockLayout(Protocol):
    """Where the samples of a block lie in a tar.

    Attributes:
        ends: The byte behind each sample, counted from the first one.
    """

    ends: list[int]

    def add_to(self, frame: OpenFrame, fields: Fields, begin: int, end: int) -> int:
        """Add samples [begin, end) to a frame; returns the bytes of their fields."""
        ...


class Block:
    """Samples that have the same fields, usual names, and members of less than 2 GiB in all.

    Attributes:
        keys: Their keys, of ASCII. They may be there already.
        columns: Of each value that the index keeps those of all samples; None where there is none.
        samples: Gives the same samples one by one. It is called before the source is asked for more.
    """

    keys: list[str]
    columns: Mapping[str, Sequence[ColumnValue | None]]
    samples: Callable[[], Iterator[Sample | Reject]]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fields."""
        raise NotImplementedError

    def lay_out(self) -> BlockLayout:
        """Lay the samples out."""
        raise NotImplementedError

    def count(self, tally: Tally) -> None:
        """Add the samples to a tally."""
        raise NotImplementedError
