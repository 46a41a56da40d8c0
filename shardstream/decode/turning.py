"""Images turned as EXIF orientations say: views of arrays, and where a part lies before it is turned."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["REVERSED", "before_turning", "turned"]

# Of each orientation: whether rows become columns; and whether then the rows, and the columns, are reversed.
_STEPS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# The orientation that undoes each orientation.
REVERSED = {number: {6: 8, 8: 6}.get(number, number) for number in _STEPS}


def turned(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of an image that is upright.

    Args:
        array: [height, width, ...], as it is stored.
        orientation: As EXIF defines it, 1 to 8.
    """
    if orientation == 1:
        return array
    swap, rows, columns = _STEPS[orientation]
    found = np.swapaxes(array, 0, 1) if swap else array
    return found[:: -1 if rows else 1, :: -1 if columns else 1]


def before_turning(
    box: tuple[int, int, int, int], size: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Where a part of an upright image lies in the image as it is stored.

    Args:
        box: Top, left, bottom and right of the part, in pixels of the upright image.
        size: Height and width of the upright image, in pixels.
        orientation: As EXIF defines it, 1 to 8.
    """
    (top, left, bottom, right), (height, width) = box, size
    swap, rows, columns = _STEPS[orientation]
    if rows:
        top, bottom = height - bottom, height - top
    if columns:
        left, right = width - right, width - left
    return (left, top, right, bottom) if swap else (top, left, bottom, right)
