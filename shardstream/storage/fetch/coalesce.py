"""Which blocks come together in one range."""

from __future__ import annotations

from collections.abc import Sequence

from shardstream.storage.fetch.in_flight import BlockRequest
from shardstream.storage.spans import LARGEST

__all__ = ["LARGEST", "LONGEST", "ranges"]

# Bytes of a range of blocks most of which are needed later in an epoch.
LONGEST = 16 << 20


def ranges(requests: Sequence[BlockRequest], most: int = LARGEST) -> list[list[BlockRequest]]:
    """Neighbours in one object together, at most `most` bytes; the order is that of the first blocks."""
    found: list[list[int]] = []  # by the number of the request
    size = 0
    places = [(request.url, request.start) for request in requests]
    for number in sorted(range(len(requests)), key=places.__getitem__):
        request = requests[number]
        before = requests[found[-1][-1]] if found else None
        if (
            before is not None
            and (before.url, before.start + before.size) == (request.url, request.start)
            and size + request.size <= most
        ):
            found[-1].append(number)
            size += request.size
        else:
            found.append([number])
            size = request.size
    return [[requests[number] for number in run] for run in sorted(found, key=min)]
