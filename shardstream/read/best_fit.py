"""Best-fit-decreasing bin packing of whole numbers, in steps over sizes and not over items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_fit"]

Ints = NDArray[np.int64]


def best_fit(sizes: Ints, room: int) -> Ints:
    """The bin of each item, where each bin holds `room` and 1 <= size <= room.

    Items go, the largest first and equals in their order, each into the bin with the least space that
    is left and suffices. Equal items and bins with equal space are handled together: D distinct sizes
    take O(D log room) steps of Python, whatever the number of items, since a bin that is filled
    with a size as often as it fits has less than half its space left.
    """
    order = np.argsort(-sizes, kind="stable")
    values, counts = np.unique(sizes, return_counts=True)
    runs: list[tuple[int, int, int]] = []  # (items, the first bin, items in each bin)
    spaces: dict[int, list[tuple[int, int]]] = {}  # space left -> runs of bins (first, how many)
    open_spaces = 0  # bit s is set where spaces[s] is not empty: the best fit is one shift away
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
            taken = min(left, used * each)
            runs.append((taken, first, each))
            left -= taken
            last = taken - (used - 1) * each  # the items in the last of the bins
            # The full ones, the last one, and those that are left as they were.
            full = used if last == each else used - 1
            parts = [(space - each * size, first, full), (space, first + used, many - used)]
            if full != used:
                parts.append((space - last * size, first + full, 1))
            for rest, begin, number in parts:
                if rest and number:
                    spaces.setdefault(rest, []).append((begin, number))
                    open_spaces |= 1 << rest
    taken_, first_, each_ = np.array(runs, np.int64).reshape(-1, 3).T
    begin = np.cumsum(taken_) - taken_
    within = np.arange(len(sizes), dtype=np.int64) - np.repeat(begin, taken_)
    found = np.empty(len(sizes), np.int64)
    found[order] = np.repeat(first_, taken_) + within // np.repeat(each_, taken_)
    return found
