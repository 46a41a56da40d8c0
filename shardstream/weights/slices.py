"""How a slice of a tensor is read: by runs of its elements, or by whole rows. Arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from shardstream.slices import Box, Run, runs

__all__ = ["Rows", "plan_slice"]

_MOST_OVERREAD = 2  # times the wanted bytes: until then one range is better than many
_LARGEST_ROW = 4 << 20  # bytes


class Rows(NamedTuple):
    """Whole rows, of which a part is wanted: the first row, and how many."""

    first: int
    length: int


def plan_slice(
    shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int], item: int, gap: int
) -> list[Run] | Rows:
    """How to read a slice.

    A slice of dimension 0 is one run. Slices of inner dimensions are whole rows if these are at most twice
    the wanted bytes, or if less than `gap` bytes lie between two runs; otherwise they are runs.

    Args:
        shape: Of the tensor.
        offsets: Where the slice begins, by dimension.
        sizes: Its shape.
        item: Bytes of an element.
        gap: Bytes that are cheaper to read than to leave out.

    Returns:
        Runs, in the order of the slice's elements; or rows, from which the slice is cut.
    """
    if 0 in sizes:
        return []
    whole, part = Box((0,) * len(shape), tuple(shape)), Box(tuple(offsets), tuple(sizes))
    inner = next((dim for dim in reversed(range(len(shape))) if sizes[dim] != shape[dim]), 0)
    if math.prod(sizes[:inner]) > 1:
        row, wanted = math.prod(shape[1:]) * item, math.prod(sizes[1:]) * item
        between = math.prod(shape[inner + 1 :]) * (shape[inner] - sizes[inner]) * item
        if row <= _LARGEST_ROW and (row <= _MOST_OVERREAD * wanted or between <= gap):
            return Rows(offsets[0], sizes[0])
    return list(runs(whole, part, part))
