"""Where an image is cut and what it becomes: arithmetic alone, the same for any thread, worker or rank."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.order.uniforms import GOLDEN, mixed

__all__ = ["Cut", "centre", "cut", "draws", "random_crops", "uniform"]

Draws = NDArray[np.uint64]
_TRIES = 10
_MASK = (1 << 64) - 1


class Cut(NamedTuple):
    """How an image is decoded: at 1 / `scale`, of that the rows top:bottom and the columns left:right,
    resized to [height, width].

    scale is 1, 2, 4 or 8, which JPEG decoders do by a smaller DCT, as fast as none. The region's borders
    are multiples of `scale` in the whole image, so that nothing is shifted by decoding it smaller.
    """

    scale: int
    top: int
    left: int
    bottom: int
    right: int
    height: int
    width: int


def draws(epoch: int, positions: NDArray[np.int64]) -> Draws:
    """The random number, uint64 [B], that belongs to each position of an epoch's order."""
    start = mixed(np.array([epoch & _MASK], np.uint64) + np.uint64(GOLDEN))
    return mixed(start + positions.astype(np.uint64) * np.uint64(GOLDEN))


def uniform(numbers: Draws, seed: int, count: int) -> NDArray[np.float64]:
    """`count` random numbers in [0, 1) for each of `numbers`, [B, count]."""
    steps = np.array([(seed + 1 + step) * GOLDEN & _MASK for step in range(count)], np.uint64)
    # Mixed twice: what differs in the seed alone must not be the same numbers one step on.
    salt = mixed(mixed(np.array([seed & _MASK], np.uint64)) + steps)
    bits = mixed(mixed(numbers[:, None] ^ salt) + salt)
    return (bits >> np.uint64(11)).astype(np.float64) / (1 << 53)


def random_crops(
    sizes: NDArray[np.int64],
    numbers: Draws,
    seed: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Random crops as torchvision's RandomResizedCrop draws them, and one more number in [0, 1) of each.

    sizes: height and width, int64 [B, 2].  The crops are top, left, height, width, int64 [B, 4].
    Ten tries of an area (share of the image's) and a ratio (width by height, uniform in its logarithm);
    if none fits, the largest crop in the middle whose ratio is allowed.
    """
    random = uniform(numbers, seed, 2 * _TRIES + 3)
    high, wide = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    target = high * wide * (area[0] + random[:, :_TRIES] * (area[1] - area[0]))
    low, top = math.log(ratio[0]), math.log(ratio[1])
    shape = np.exp(low + random[:, _TRIES : 2 * _TRIES] * (top - low))
    widths, heights = np.rint(np.sqrt(target * shape)), np.rint(np.sqrt(target / shape))
    fits = (widths > 0) & (widths <= wide) & (heights > 0) & (heights <= high)
    rows, chosen = np.arange(len(sizes)), fits.argmax(axis=1)
    crop = np.stack((heights[rows, chosen], widths[rows, chosen]), axis=1)
    none = ~fits.any(axis=1)
    if none.any():
        crop[none, 1] = np.clip(np.rint(high[none, 0] * ratio[1]), 1, wide[none, 0])
        crop[none, 0] = np.clip(np.rint(wide[none, 0] / ratio[0]), 1, high[none, 0])
    room = sizes - crop
    corner = np.floor(random[:, 2 * _TRIES : 2 * _TRIES + 2] * (room + 1))
    corner[none] = np.floor(room[none] / 2)
    return np.concatenate((corner, crop), axis=1).astype(np.int64), random[:, -1]


def cut(size: tuple[int, int], crop: tuple[int, int, int, int], target: tuple[int, int]) -> Cut:
    """The cut that decodes `crop` of an image of `size` no larger than is needed for `target`.

    The crop grows to the next borders that the scale allows, by less than `scale` pixels on each side.
    """
    top, left, height, width = crop
    scale = 1
    while scale < 8 and height >= 2 * scale * target[0] and width >= 2 * scale * target[1]:
        scale *= 2
    return Cut(
        scale, top // scale, left // scale, -(-(top + height) // scale), -(-(left + width) // scale), *target
    )


def centre(size: tuple[int, int], shorter: int) -> Cut:
    """The cut that resizes a whole image so that its shorter side is `shorter`."""
    height, width = size
    if height <= width:
        target = (shorter, max(shorter, shorter * width // height))
    else:
        target = (max(shorter, shorter * height // width), shorter)
    return cut(size, (0, 0, height, width), target)
