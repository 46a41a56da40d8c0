"""What is asked of a dataset at once: the positions of some batches, and how the work for them is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.order.topology import Topology

__all__ = ["Request", "UnitOptions", "requests_of", "split"]

_TOGETHER = 32  # items that are made at a time if single ones are asked for


class Request(NamedTuple):
    """Some consecutive batches: the positions of all of them, int64, and the size of each."""

    positions: NDArray[np.int64]
    sizes: list[int]


@dataclass(frozen=True)
class UnitOptions:
    """How the work for requests is cut into units.

    Args:
        direct: Units are allowed that the consumer builds by itself.
        source: The number of the dataset in a mixture.
        collates: A function of the user's makes the batches, of any size. They are then built one by one, as
            far as there is room for them.
    """

    direct: bool = False
    source: int = 0
    collates: bool = False


def requests_of(ranks: Topology, start: int, total: int, most: int) -> Iterator[Request]:
    """The positions of one rank from `start` on, one at first and then more and more at a time."""
    first, count = ranks.first(start), 1
    while first < total:
        positions = np.arange(first, min(first + count * ranks.dp_size, total), ranks.dp_size, dtype=np.int64)
        whole, rest = divmod(len(positions), _TOGETHER)
        yield Request(positions, [_TOGETHER] * whole + [rest] * bool(rest))
        first, count = first + count * ranks.dp_size, min(4 * count, most)


def split(request: Request, singles: bool) -> list[Request]:
    """A request of several batches as one request for each; with `singles`, one batch as one for each item.

    Returns:
        The requests; none if it cannot be cut any more.
    """
    sizes = request.sizes if len(request.sizes) > 1 else [1] * (len(request.positions) if singles else 1)
    if len(sizes) < 2:
        return []
    return [
        Request(positions, [len(positions)])
        for positions in np.split(request.positions, np.cumsum(sizes)[:-1])
    ]
