"""Blocks that are views of the range in which they came, and the memory that this takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from shardstream.memory import MemoryBudget, when_dropped
from shardstream.storage.transport.backends import Data

__all__ = ["Range", "RangeParts", "owned", "range_of"]

_NAME = "parts of ranges"
_LEAST = 64 << 10  # bytes; a smaller block is copied, which takes less time than to watch a view of it
_PART = 8  # one part in so many of the budget may be blocks that are gone and still in memory
_HALF = 2  # a range stays only for views that are one part in so many of it, or more


class Range:
    """A range of which blocks are views.

    The garbage collector may end a block at any moment, in any thread. So there is no lock, and each step is
    atomic.

    Args:
        budget: Where the bytes of the range count that are not of a block that is there.
        sizes: The bytes of each block.
        more: The bytes of the range that are of no such block, since they were copied.
    """

    def __init__(self, budget: MemoryBudget, sizes: Sequence[int], more: int) -> None:
        self._forget, self._count, self._total = budget.forget, len(sizes), sum(sizes) + more
        self._more = more
        self._numbers = itertools.count(1)
        self._gone: list[int] = []
        self._forget(_NAME, [-more])

    @property
    def left(self) -> int:
        """How many of its blocks are there."""
        return self._count - len(self._gone)

    @property
    def broken(self) -> bool:
        """Whether bytes of it are in memory that are of no block that is there."""
        return self.left > 0 and (self._more > 0 or self.left < self._count)

    def end(self, size: int) -> None:
        """A block is gone."""
        self._gone.append(size)
        last = next(self._numbers) == self._count
        self._forget(_NAME, [self._total - size if last else -size])


class _Part(np.ndarray):
    """A block of a range. numpy makes it the base of all views of the block, so that it dies after them."""

    range: Range


class RangeParts:
    """Cuts ranges into blocks without a copy; for many threads.

    A block that is gone, or was copied, stays in memory as long as a view of its range is there. Such bytes
    count in a budget. If there are too many of them, or the views would be the lesser part of the range, all
    blocks are copied.

    Args:
        budget: Where the bytes count.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        budget.holder(_NAME)

    @property
    def kept(self) -> int:
        """The bytes of ranges in memory that are of no block that is there."""
        return self._budget.bytes_of(_NAME)

    def cut(self, stored: Data, parts: Sequence[tuple[int, int, bool]]) -> list[Data]:
        """The blocks of a range.

        Args:
            stored: The bytes of the range.
            parts: (where it begins in the range, its size, whether it gets memory of its own) of each block.
        """
        whole = memoryview(stored)
        if len(parts) == 1:
            at, size, _ = parts[0]
            return [whole[at : at + size]]
        copies = self.kept > self._budget.limit // _PART
        viewed = [not copies and not own and size >= _LEAST for _, size, own in parts]
        sizes = [size for (_, size, _), view in zip(parts, viewed, strict=True) if view]
        if _HALF * sum(sizes) < len(whole) or not sizes:
            return [_copy(np.frombuffer(whole[at : at + size], np.uint8)) for at, size, _ in parts]
        shared = Range(self._budget, sizes, len(whole) - sum(sizes))
        found: list[Data] = []
        for (at, size, _), view in zip(parts, viewed, strict=True):
            part = np.frombuffer(whole[at : at + size], np.uint8)
            if not view:
                found.append(_copy(part))
                continue
            # A view of a view: of the first one, numpy would make the range the base, and forget the owner.
            owner = cast(_Part, part.view(_Part)[:])
            owner.range = shared
            when_dropped(owner, shared.end, size)
            found.append(np.asarray(owner).data.toreadonly())
        return found


def range_of(data: Data) -> Range | None:
    """The range that a block is a view of; None if it has memory of its own."""
    base = getattr(getattr(data, "obj", None), "base", None)
    return base.range if isinstance(base, _Part) else None


def owned(data: Data) -> Data:
    """The block with memory of its own: a copy if it is a view of a range."""
    return data if range_of(data) is None else _copy(np.frombuffer(data, np.uint8))


def _copy(part: NDArray[np.uint8]) -> memoryview:
    """A read-only copy, made without the GIL: many readers share it."""
    return part.copy().data.toreadonly()
