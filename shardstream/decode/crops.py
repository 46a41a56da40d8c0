"""Where an image is cut, and to which size it is resized: arithmetic, the same everywhere."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["RANDOM", "TRIES", "Cut", "centre", "cover", "cut", "random_crops", "scaled"]

RANDOM = 32  # how many random numbers each sample has
TRIES = 10  # how many crops are tried until one fits


class Cut(NamedTuple):
    """How an image is decoded, cut and resized.

    In the whole image the borders of the region are multiples of `scale`, so that the region is not shifted
    if it is decoded smaller.

    Attributes:
        scale: 1, 2, 4 or 8. The image is decoded at 1 / scale of its size. JPEG decoders do this with a
            smaller DCT, at no cost.
        top: The first row of the region, in pixels of the decoded image.
        left: Its first column.
        bottom: The row behind its last one.
        right: The column behind its last one.
        height: The height to which the region is resized, in pixels.
        width: Its width after that.
    """

    scale: int
    top: int
    left: int
    bottom: int
    right: int
    height: int
    width: int


def random_crops(
    sizes: NDArray[np.int64],
    random: NDArray[np.float32],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Random crops, drawn like those of torchvision's RandomResizedCrop.

    Ten pairs of an area and a ratio are drawn; the logarithm of the ratio is uniform. The first pair that
    fits the image is taken. If no pair fits, the crop is the largest one in the middle with an allowed ratio.

    `decode.dali` computes the same in a DALI graph, number by number in float32, so that both give equal
    crops.

    Args:
        sizes: int64 [B, 2], the height and width of each image in pixels.
        random: float32 [B, RANDOM], numbers in [0, 1) from `order.uniforms`. Ten are for areas, ten for
            ratios, and then one each for left, top and the flip. The others are not used.
        area: The least and the largest part of the image's pixels.
        ratio: The least and the largest width divided by height.

    Returns:
        int64 [B, 4], top, left, height and width of each crop in pixels; and float32 [B], the number in [0,
        1) that decides whether the crop is flipped.
    """
    one = np.float32
    high, wide = sizes[:, :1].astype(one), sizes[:, 1:].astype(one)
    areas = (one(area[0]) + one(area[1] - area[0]) * random[:, :TRIES]) * high * wide
    low, top = float(np.log(ratio[0])), float(np.log(ratio[1]))
    logs = one(low) + one(top - low) * random[:, TRIES : 2 * TRIES]
    # In float64 and then rounded, like expf of the C library, which DALI calls. numpy's float32 exp is less
    # exact.
    ratios = np.exp(logs.astype(np.float64)).astype(one)
    widths = np.maximum(_rounded(np.sqrt(areas * ratios)), one(1))
    heights = np.maximum(_rounded(np.sqrt(areas / ratios)), one(1))
    fits = (widths <= wide) & (heights <= high)
    rows, chosen, none = np.arange(len(sizes)), fits.argmax(axis=1), ~fits.any(axis=1)
    crop = np.stack((heights[rows, chosen], widths[rows, chosen]), axis=1)
    crop[none, 1] = np.minimum(wide[none, 0], np.maximum(_rounded(high[none, 0] * one(ratio[1])), one(1)))
    crop[none, 0] = np.minimum(high[none, 0], np.maximum(_rounded(wide[none, 0] / one(ratio[0])), one(1)))
    room = sizes.astype(one) - crop
    place = random[:, 2 * TRIES : 2 * TRIES + 2][:, ::-1].copy()
    place[none] = 0.5
    more = np.where(none, one(0), one(1))[:, None]
    corner = np.minimum(np.floor(place * (room + more)), room)
    return np.concatenate((corner, crop), axis=1).astype(np.int64), random[:, 2 * TRIES + 2]


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.floor(values + np.float32(0.5))
    return found


def cut(size: tuple[int, int], crop: tuple[int, int, int, int], target: tuple[int, int]) -> Cut:
    """The cut for a crop that is resized to `target`. The image is decoded no larger than this needs.

    The crop grows to borders that the scale allows, by less than `scale` pixels on each side.

    Args:
        size: Height and width of the image, in pixels.
        crop: Top, left, height and width of the crop, in pixels of the whole image.
        target: Height and width after the resize, in pixels.
    """
    top, left, height, width = crop
    scale = 1
    while scale < 8 and height >= 2 * scale * target[0] and width >= 2 * scale * target[1]:
        scale *= 2
    return Cut(
        scale, top // scale, left // scale, -(-(top + height) // scale), -(-(left + width) // scale), *target
    )


def centre(size: tuple[int, int], shorter: int) -> Cut:
    """The cut that resizes a whole image, so that its shorter side has `shorter` pixels."""
    return cover(size, (shorter, shorter))


def cover(size: tuple[int, int], least: tuple[int, int]) -> Cut:
    """The cut that resizes a whole image to the smallest size that has at least `least` pixels each way.

    Args:
        size: Height and width of the image, in pixels.
        least: The least height and width after the resize, in pixels.
    """
    (height, width), (high, wide) = size, least
    if height * wide <= high * width:
        target = (high, max(wide, high * width // height))
    else:
        target = (max(high, wide * height // width), wide)
    return cut(size, (0, 0, height, width), target)


def scaled(
    crops: NDArray[np.int64], sizes: NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The crops of other images that show the same part.

    Args:
        crops: int64 [B, 4], top, left, height and width of each crop in pixels.
        sizes: int64 [B, 2], the height and width of each image in pixels.
        others: int64 [B, 2], those of the other images.
    """
    begin = np.rint(crops[:, :2] * others / sizes).astype(np.int64)
    begin = np.minimum(begin, others - 1)
    end = np.rint((crops[:, :2] + crops[:, 2:]) * others / sizes).astype(np.int64)
    return np.concatenate((begin, np.maximum(end - begin, 1)), axis=1)
