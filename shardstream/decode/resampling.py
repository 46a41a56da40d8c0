"""One encoded image to pixels of one size: decoded no larger than needed, cut, and resized once."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.decode import pixels
from shardstream.decode.crops import Cut
from shardstream.decode.registry import Data

__all__ = ["middle", "nearest", "resampled"]

_LOCAL = threading.local()
_KEPT = 48 << 20  # bytes that a thread keeps at most for its next image


def resampled(torch: Any, data: Data, head: pixels.Header, how: Cut, shape: tuple[int, int]) -> Any:
    """The part of an image that `how` says, resized, and of that the middle.

    Everything but the resize is numpy: operators of torch would start threads of their own, beside the
    threads of the loader.

    Args:
        torch: The module.
        data: The encoded image.
        head: What `pixels.header` returned.
        how: Which part is taken, and to which size it is resized.
        shape: Height and width of the result, in pixels.

    Returns:
        uint8 [height, width, 3], RGB. The memory belongs to the thread, which uses it again in its next call.

    Raises:
        ValueError, OSError: The image is damaged, or ends early.
    """
    source = torch.from_numpy(pixels.region(data, head, how, partial(_scratch, "source")))
    out = torch.from_numpy(_scratch("out", how.height, how.width))
    # The operator behind torch.nn.functional.interpolate(antialias=True), since only the operator takes
    # `out`. Input and output are channels last, which takes a third less time.
    torch.ops.aten._upsample_bilinear2d_aa.out(  # noqa: SLF001
        source.permute(2, 0, 1)[None], [how.height, how.width], False, out=out.permute(2, 0, 1)[None]
    )
    (top, left), (height, width) = middle(how, shape), shape
    return out.numpy()[top : top + height, left : left + width]


def nearest(found: NDArray[Any], full: tuple[int, int], how: Cut, shape: tuple[int, int]) -> NDArray[Any]:
    """The pixels of a mask that lie where `resampled` takes those of its image.

    Args:
        found: [height, width], the mask. It may have another size than the image.
        full: Height and width of the whole image, in pixels.
        how: What was done with the image.
        shape: Height and width of the result, in pixels.

    Returns:
        [height, width] of `shape`, a copy.
    """
    offsets, begins = middle(how, shape), (how.top, how.left)
    ends, resized, picked = (how.bottom, how.right), (how.height, how.width), []
    for axis in range(2):
        begin, end = begins[axis] * how.scale, min(ends[axis] * how.scale, full[axis])
        places = (np.arange(shape[axis]) + offsets[axis] + 0.5) * ((end - begin) / resized[axis]) + begin
        places = np.floor(places * (found.shape[axis] / full[axis])).astype(np.int64)
        picked.append(np.clip(places, 0, found.shape[axis] - 1))
    picture: NDArray[Any] = found[np.ix_(*picked)]
    return picture


def middle(how: Cut, shape: tuple[int, int]) -> tuple[int, int]:
    """The first row and column of the middle of a resized image, which has this height and width."""
    return round((how.height - shape[0]) / 2), round((how.width - shape[1]) / 2)


def _scratch(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] of this thread. It is used again, since the kernel has to zero new memory."""
    flat, count = getattr(_LOCAL, name, None), 3 * height * width
    if count > _KEPT:
        return np.empty((height, width, 3), np.uint8)
    if flat is None or len(flat) < count:
        flat = np.empty(count, np.uint8)
        setattr(_LOCAL, name, flat)
    made: NDArray[np.uint8] = flat[:count].reshape(height, width, 3)
    return made
