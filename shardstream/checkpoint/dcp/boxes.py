"""Which bytes of a stored tensor a box of it is made of. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Piece", "pieces"]

# Rows that are read whole hold at most so many times the bytes that are wanted.
_OVER_READ = 2


@dataclass(frozen=True)
class Piece:
    """A part of a box that is read by one range.

    start, size: the bytes of the range, from the first byte of the tensor.
    shape, offsets: the rows that the range holds, and where in them the piece begins.
    target: where the piece begins in the box.  lengths: its size in each dimension.
    whole: whether the range holds nothing but the piece, in the order of the box.
    """

    start: int
    size: int
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    target: tuple[int, ...]
    lengths: tuple[int, ...]
    whole: bool


def pieces(
    shape: Sequence[int],
    offsets: Sequence[int],
    lengths: Sequence[int],
    itemsize: int,
    most: int = 64 << 20,
    bounced: bool = False,
) -> Iterator[Piece]:
    """The ranges that a box of a tensor is read by.

    Args:
        shape: the size of the tensor, whose elements lie in row-major order.
        offsets: where the box begins, in elements.
        lengths: the size of the box, in elements.
        itemsize: bytes of an element.
        most: bytes of a range that is read into memory of its own, and then copied.
        bounced: whether all ranges are. Else only those that hold more than the box.

    Yields:
        The pieces, which cover the box. An empty box has none.
    """
    if 0 in lengths:
        return
    yield from _split(
        tuple(shape), tuple(offsets), tuple(lengths), (0,) * len(shape), itemsize, most, bounced
    )


def _split(
    shape: tuple[int, ...],
    offsets: tuple[int, ...],
    lengths: tuple[int, ...],
    target: tuple[int, ...],
    itemsize: int,
    most: int,
    bounced: bool,
) -> Iterator[Piece]:
    # The outermost dimension in which the box is longer than 1. Those before it only say where it begins.
    dim = next((number for number, length in enumerate(lengths) if length > 1), len(shape))
    inner = math.prod(shape[dim + 1 :]) * itemsize
    origin = sum(
        offsets[number] * math.prod(shape[number + 1 :]) * itemsize for number in range(min(dim, len(shape)))
    )
    if dim == len(shape):
        yield Piece(origin, itemsize, (1,) * len(shape), (0,) * len(shape), target, lengths, whole=True)
        return
    rows = lengths[dim]
    start, size = origin + offsets[dim] * inner, rows * inner
    wanted = math.prod(lengths) * itemsize
    small = size <= most or rows == 1
    if (wanted == size and not bounced) or (small and size <= _OVER_READ * wanted):
        held = (1,) * dim + (rows,) + shape[dim + 1 :]
        inside = (0,) * (dim + 1) + offsets[dim + 1 :]
        yield Piece(start, size, held, inside, target, lengths, whole=wanted == size)
        return
    # Fewer rows at a time if that helps, else row by row.
    step = max(1, most // inner) if size <= _OVER_READ * wanted else 1
    for row in range(0, rows, step):
        count = min(step, rows - row)
        yield from _split(
            shape,
            (*offsets[:dim], offsets[dim] + row, *offsets[dim + 1 :]),
            (*lengths[:dim], count, *lengths[dim + 1 :]),
            (*target[:dim], target[dim] + row, *target[dim + 1 :]),
            itemsize,
            most,
            bounced,
        )
