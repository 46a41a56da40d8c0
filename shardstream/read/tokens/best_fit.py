"""Best-fit-decreasing bin packing of whole numbers. A step handles all items of one size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_fit"]

Ints = NDArray[np.int64]


def best_fit(sizes: Ints, room: int) -> Ints:
    """The bin of each item.

    The largest items come first, and items of equal size in their order. Each item goes into the bin with the
    least space that is large enough for it.

    Equal items, and bins with equal space, are handled together. If a bin is filled with a size as often as
    the size fits, less than half of its space is left. So D distinct sizes take O(D log room) steps of
    Python, for any number of items.

    Args:
        sizes: int64 [n], the size of each item, 1 to `room`.
        room: The space of each bin.

    Returns:
        int64 [n], the number of the bin of each item, from 0.
    """
    order = np.argsort(-sizes, kind="stable")
    values, counts = np.unique(sizes, return_counts=True)
    runs: list[tuple[int, int, int]] = []  # (items, the first bin, items in each bin)
    spaces: dict[int, list[tuple[int, int]]] = {}  # space left -> runs of bins (first, how many)
    open_spaces = 0  # bit s is set if spaces[s] is not empty, so that one shift finds the best fit
    bins = 0
    for size, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left = count
        while left:
            fitting = open_spaces >> size
            if fitting:
                space = size + (fitting & -fitting).bit_length() - 1
                first, many = spaces[space].pop()
                if not spaces[space]:
                    open_spaces ^= 1 << space
            else:
                space, first, many = room, bins, -(-left // (room // size))
                bins += many
            each = space // size
            used = min(many, -(-left // each))
            placed = min(left, used * each)
            runs.append((placed, first, each))
            left -= placed
            last = placed - (used - 1) * each  # the items in the last of the bins
            # The bins that are full now, the last bin, and the bins that no item went into.
            full = used if last == each else used - 1
            parts = [(space - each * size, first, full), (space, first + used, many - used)]
            if full != used:
                parts.append((space - last * size, first + full, 1))
            for rest, begin, number in parts:
                if rest and number:
                    spaces.setdefault(rest, []).append((begin, number))
                    open_spaces |= 1 << rest
    placed_, first_, each_ = np.array(runs, np.int64).reshape(-1, 3).T
    begin = np.cumsum(placed_) - placed_
    within = np.arange(len(sizes), dtype=np.int64) - np.repeat(begin, placed_)
    found = np.empty(len(sizes), np.int64)
    found[order] = np.repeat(first_, placed_) + within // np.repeat(each_, placed_)
    return found
