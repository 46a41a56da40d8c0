"""Modes of single fields: a mask beside an image, and an image that stays as large as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardstream.decode import pixels
from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.format.pictures import MAX_PIXELS

__all__ = ["Mask", "Whole", "known"]


@dataclass(frozen=True)
class Mask:
    """A mask beside an image: the values as they are stored, cut and mirrored as the image is.

        decode={"jpg": images.Train(224), "mask.png": images.Mask()}

    Palettes give the numbers of their colours. A pixel is that of the mask that is nearest. The tensor is
    [B, height, width], of the image's size. A mask may have another size than its image, of the same shape.

    Args:
        like: The key of the image in `decode`. None: its only image.
        dtype: Of the tensor. A mask with a value that it cannot hold is damaged.
        fill: The value of all pixels of a mask that is damaged or missing.
        on_error: See `Images`.

    Raises:
        OptionError: A value is wrong.
    """

    like: str | None = None
    dtype: Literal["uint8", "uint16", "int32", "int64", "float32"] = "uint8"
    fill: int = 0
    on_error: Literal["raise", "mask"] = "raise"

    def __post_init__(self) -> None:
        known("dtype", self.dtype, "uint8", "uint16", "int32", "int64", "float32")
        known("on_error", self.on_error, "raise", "mask")
        object.__setattr__(self, "fill", whole_number("fill", self.fill))
        if self.dtype != "float32" and not np.can_cast(np.min_scalar_type(self.fill), self.dtype):
            raise OptionError(f"fill={self.fill} is no {self.dtype}")


@dataclass(frozen=True)
class Whole:
    """Images as large as they are: arrays uint8 [height, width, 3], RGB, as decode=True gives them.

    Args:
        upright: Whether images are turned as their EXIF orientation says. False leaves them as stored.
        max_pixels: The most pixels that an image may have, from its header. One with more is an error.

    Raises:
        OptionError: A value is wrong.
    """

    upright: bool = True
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_pixels", whole_number("max_pixels", self.max_pixels, 1))

    def __call__(self, data: bytes | memoryview) -> NDArray[np.uint8]:
        """The pixels of an encoded image."""
        return pixels.whole(data, self.upright, self.max_pixels)


def known(name: str, value: object, *choices: str) -> None:
    """Raise OptionError if the value of an option is none of the choices."""
    if value not in choices:
        raise OptionError(f"{name}={value!r} must be {' or '.join(map(repr, choices))}")
