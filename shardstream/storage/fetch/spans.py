"""Which parts of one object come together in one request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shardstream.errors import StorageError
from shardstream.storage.transport.backends.base import Data

__all__ = ["GAP", "LARGEST", "Part", "extent", "fill", "spans"]

Part = tuple[int, memoryview]  # where bytes begin in an object, and the memory that they fill

GAP = 256 << 10  # bytes that nobody wants: reading them takes less time than another request
LARGEST = 8 << 20  # bytes of a range


def spans(parts: Iterable[Part], gap: int = GAP, most: int = LARGEST) -> list[list[Part]]:
    """Parts of one object, grouped into the ranges that are read, in the order of their places.

    Neighbours come together if at most `gap` bytes lie between them. A run of them that is longer than `most`
    bytes is cut at the multiples of `most`, and parts with it. So all but its first and last range are whole
    blocks of `most` bytes, such as checksums are of.

    Args:
        parts: (start, view) pairs, in any order. They may overlap. Empty ones are left out.
        gap: Bytes.
        most: Bytes of a range.

    Returns:
        The parts of each range, by their places; `extent` gives where the range begins and ends.

    Raises:
        StorageError: A part begins before the object.
    """
    found: list[list[Part]] = []
    for run in _runs(sorted((part for part in parts if len(part[1])), key=_start), gap):
        start, end = extent(run)
        found += [run] if end - start <= most else _cut(run, most)
    return found


def extent(span: Sequence[Part]) -> tuple[int, int]:
    """Where a range begins and ends, of parts that are ordered by their places."""
    return span[0][0], max(start + len(view) for start, view in span)


def fill(span: Iterable[Part], start: int, data: Data) -> None:
    """Copy the bytes of a range, which begins at `start`, to where they belong; without the GIL."""
    import numpy as np  # here, because packers load no numpy

    source = np.frombuffer(data, np.uint8)
    for place, view in span:
        np.frombuffer(view, np.uint8)[:] = source[place - start : place - start + len(view)]


def _start(part: Part) -> int:
    if part[0] < 0:
        raise StorageError(f"byte {part[0]} does not exist")
    return part[0]


def _runs(parts: Iterable[Part], gap: int) -> list[list[Part]]:
    runs: list[list[Part]] = []
    end = 0
    for part in parts:
        if runs and part[0] - end <= gap:
            runs[-1].append(part)
            end = max(end, part[0] + len(part[1]))
        else:
            runs.append([part])
            end = part[0] + len(part[1])
    return runs


def _cut(run: Iterable[Part], most: int) -> list[list[Part]]:
    """A run, cut at the multiples of `most`."""
    blocks: dict[int, list[Part]] = {}
    for start, view in run:
        at = 0
        while at < len(view):
            block = (start + at) // most
            end = min(len(view), (block + 1) * most - start)
            blocks.setdefault(block, []).append((start + at, view[at:end]))
            at = end
    return [sorted(blocks[block], key=_start) for block in sorted(blocks)]
