"""`images.Train`, `images.Evaluate` and `images.Mask` by DALI: it decodes and resizes the images.

Where an image is cut is computed here, by the code of the CPU decoder. Masks are decoded here, too: DALI
would give their colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.decode.crops import RANDOM, Cut, scaled
from shardstream.decode.picture_batch import Picture
from shardstream.decode.resampling import middle

__all__ = ["PLACE", "Cuts", "anywhere", "cuts", "pipeline_of", "places"]

Ints = NDArray[np.int64]
Cuts = list[tuple[Cut, bool]]  # of each image how it is cut, and whether it is mirrored

PLACE = "place_of_"  # in front of the name of an image: the node with where it is cut


def pipeline_of(pictures: Sequence[Picture]) -> Callable[..., dict[str, Any]]:
    """The function of a graph that makes these pictures, without the masks."""

    def graph(device: str, **nodes: Any) -> dict[str, Any]:
        return {
            picture.name: _picture(
                picture.how, nodes[f"image{number}"], nodes[f"{PLACE}image{number}"], device
            )
            for number, picture in enumerate(pictures)
            if not picture.mask
        }

    return graph


def _picture(how: Any, image: Any, place: Any, device: str) -> Any:
    from nvidia.dali import fn, types

    pixels = fn.decoders.image_slice(
        image,
        start=place[0:2],
        shape=place[2:4],
        axes=[0, 1],
        device=device,
        adjust_orientation=how.upright,
    )
    pixels = fn.resize(pixels, size=fn.cast(place[4:6], dtype=types.FLOAT), antialias=True)
    pixels = fn.slice(pixels, start=place[6:8], shape=list(how.shape), axes=[0, 1])
    more: dict[str, Any] = {"dtype": types.UINT8}
    if how.dtype == "float32":
        mean, std = ([255 * value for value in values] for values in (how.mean, how.std))
        more = {"dtype": types.FLOAT, "mean": mean, "std": std}
    layout = "CHW" if how.layout == "NCHW" else "HWC"
    return fn.crop_mirror_normalize(pixels, output_layout=layout, mirror=place[8], **more)


def cuts(
    pictures: Sequence[Picture], sizes: Mapping[str, Ints], random: NDArray[np.float32] | None
) -> dict[int, Cuts]:
    """How the images of a batch are cut, by the number of the picture.

    Args:
        pictures: What is made.
        sizes: For each image of the graph int64 [B, 2], height and width in pixels.
        random: float32 [B, R], the random numbers of each sample, or None.
    """
    crops: dict[int, tuple[Ints, Sequence[bool]]] = {}
    found: dict[int, Cuts] = {}
    for number, picture in enumerate(pictures):
        if picture.mask:
            continue
        mine = sizes[f"image{number}"]
        if picture.like is None:
            first = picture.draw * RANDOM
            crops[number] = picture.how.crops(
                mine, None if random is None else random[:, first : first + RANDOM]
            )
        else:
            before, flips = crops[picture.like]
            crops[number] = scaled(before, sizes[f"image{picture.like}"], mine), flips
        parts, flips = crops[number]
        found[number] = [
            (_whole(picture.how.cut(tuple(size), tuple(part)), part), flip)
            for size, part, flip in zip(mine.tolist(), parts.tolist(), flips, strict=True)
        ]
    return found


def _whole(cut: Cut, part: Sequence[int]) -> Cut:
    """The cut of an image that is decoded at its full size: exactly the part."""
    top, left, height, width = part
    return Cut(1, top, left, top + height, left + width, cut.height, cut.width)


def places(picture: Picture, cuts: Cuts) -> NDArray[np.int32]:
    """What the node of a picture's place gets, int32 [B, 9].

    The start and the shape of what is decoded, the size after the resize, the start of what is left of it,
    each vertical and horizontal, and whether it is mirrored.
    """
    rows = [
        (
            *(cut.top, cut.left, cut.bottom - cut.top, cut.right - cut.left, cut.height, cut.width),
            *middle(cut, picture.how.shape),
            flip,
        )
        for cut, flip in cuts
    ]
    return np.array(rows, np.int32)


def anywhere(values: NDArray[Any]) -> NDArray[Any]:
    """Places that fit any image of at least 64 x 64 pixels; random numbers stay what they are."""
    if values.dtype != np.int32:
        return values
    found = values.copy()
    found[:, :4] = 0, 0, 64, 64
    return found
