"""Parts of tensors, and which elements they have in common. Arithmetic alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Box", "Run", "intersection", "runs"]


class Box(NamedTuple):
    """A part of a tensor: where it begins in each dimension, and its size there."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


class Run(NamedTuple):
    """Elements that lie one after another both in the source and in the target. Numbers count elements."""

    source: int
    target: int
    length: int


def intersection(one: Box, other: Box) -> Box | None:
    """What two parts of a tensor have in common; None if that is nothing."""
    starts, sizes = [], []
    for a, b, m, n in zip(one.offsets, other.offsets, one.shape, other.shape, strict=True):
        start, end = max(a, b), min(a + m, b + n)
        if start >= end:
            return None
        starts.append(start)
        sizes.append(end - start)
    return Box(tuple(starts), tuple(sizes))


def runs(source: Box, target: Box, common: Box) -> Iterator[Run]:
    """The elements of `common`, as runs that lie together in two row-major arrays.

    Args:
        source: The part of the tensor that one array holds.
        target: The part that the other one holds.
        common: Their intersection.
    """
    steps = len(common.shape)
    split = steps  # dimensions from here on are whole in both arrays
    while split and common.shape[split - 1] == source.shape[split - 1] == target.shape[split - 1]:
        split -= 1
    split = max(0, split - 1)  # and of the one before it, a part is one run
    count = math.prod(common.shape[split:])
    from_source = _start(source, common), _strides(source.shape)[:split]
    to_target = _start(target, common), _strides(target.shape)[:split]
    for index in itertools.product(*(range(size) for size in common.shape[:split])):
        yield Run(_at(from_source, index), _at(to_target, index), count)


def _strides(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return strides[::-1]


def _start(array: Box, common: Box) -> int:
    strides = _strides(array.shape)
    return sum((c - a) * s for c, a, s in zip(common.offsets, array.offsets, strides, strict=True))


def _at(place: tuple[int, list[int]], index: Sequence[int]) -> int:
    start, strides = place
    return start + sum(i * s for i, s in zip(index, strides, strict=True))
