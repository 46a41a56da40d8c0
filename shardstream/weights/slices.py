"""Which bytes of a file a slice of a tensor is. Pure arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Rows", "Run", "plan_slice"]

_MOST_OVERREAD = 2  # times the wanted bytes: until then one range is better than many
_LARGEST_ROW = 4 << 20  # bytes


class Run(NamedTuple):
    """Neighbouring elements: where they begin in the tensor, and in the slice; how many."""

    source: int
    target: int
    length: int


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
    inner = next((dim for dim in reversed(range(len(shape))) if sizes[dim] != shape[dim]), 0)
    count = math.prod(sizes[inner:])
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    if math.prod(sizes[:inner]) > 1:
        row, wanted = strides[0] * item, math.prod(sizes[1:]) * item
        between = strides[inner] * (shape[inner] - sizes[inner]) * item
        if row <= _LARGEST_ROW and (row <= _MOST_OVERREAD * wanted or between <= gap):
            return Rows(offsets[0], sizes[0])
    base = sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))
    outer = itertools.product(*(range(size) for size in sizes[:inner]))
    return [
        Run(
            base + sum(at * stride for at, stride in zip(place, strides, strict=False)), number * count, count
        )
        for number, place in enumerate(outer)
    ]
