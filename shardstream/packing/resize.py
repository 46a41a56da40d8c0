"""Makes images smaller while they are packed: the shorter side to N pixels, upright, encoded again."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from shardstream.errors import require
from shardstream.format.kinds import PIXELS
from shardstream.format.numbers import whole_number
from shardstream.format.pictures import picture_format

__all__ = ["Resize", "Resized"]

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_FORMATS = ("JPEG", "PNG", "WEBP")
_MODES = ("L", "RGB", "LA", "RGBA")
_INFLATED = 1032  # bytes that a byte of deflate can become at most
_PER_BYTE = (
    1024  # pixels that a byte of JPEG can become: a block of 8 x 8 takes a bit, and there is some room
)


class Resized(NamedTuple):
    """One image after `Resize`.

    Attributes:
        data: Its bytes now.
        bytes_before: How many bytes it had before.
        pixels_before: How many pixels it had before.
        pixels: How many pixels it has now.
    """

    data: bytes
    bytes_before: int
    pixels_before: int
    pixels: int


@dataclass(frozen=True)
class Resize:
    """Makes images smaller.

    The bytes of an image do not change if it is small enough and upright. JPEG, PNG and WebP alone change,
    and of these no images of more than 8 bits. The same input gives the same bytes with the same versions of
    the libraries.

    Args:
        side: Pixels of the shorter side. An image is never made larger.
        quality: The quality of JPEG and WebP, 1 to 100.

    Raises:
        OptionError: A value is wrong.
        MissingExtraError: Pillow is not installed.
    """

    side: int
    quality: int = 90

    def __post_init__(self) -> None:
        object.__setattr__(self, "side", whole_number("resize", self.side, 1, 1 << 15))
        object.__setattr__(self, "quality", whole_number("quality", self.quality, 1, 100))
        require("PIL.Image", "images")

    def apply(self, extension: str, data: bytes) -> Resized | None:
        """Make an image smaller.

        Args:
            extension: The extension of the file, such as "jpg".
            data: The content of the file.

        Returns:
            The image, or None for kinds of images that do not change.

        Raises:
            ValueError, OSError: The image is damaged.
        """
        kind = PIXELS.get(extension)
        if kind not in _FORMATS or extension == "mpo" or picture_format(data) not in _FORMATS:
            return None
        image: Any = require("PIL.Image", "images")
        turn = require("PIL.ImageOps", "images").exif_transpose
        with image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            if opened.mode.startswith(("I", "F")):
                return None
            before = opened.width * opened.height
            # Damage in a header must not take memory for what is not there.
            if before > _most_pixels(opened, len(data)):
                raise ValueError(
                    f"{opened.width} x {opened.height} pixels in {len(data)} bytes: it is cut off"
                )
            upright = opened.getexif().get(_ORIENTATION, 1) == 1
            share = self.side / min(opened.size)
            if share >= 1 and upright:
                opened.load()  # to raise the error of a damaged image
                return Resized(data, len(data), before, before)
            profile = opened.info.get("icc_profile")
            size = tuple(max(1, round(side * min(1.0, share))) for side in opened.size)
            # JPEGs are decoded faster at a half or a quarter of their size. The filter gets twice the target
            # size.
            opened.draft(None, (2 * size[0], 2 * size[1]))
            found = opened if opened.mode in _MODES else opened.convert(_colours(opened))
            found = turn(found.resize(size, image.Resampling.LANCZOS) if share < 1 else found)
            found.info.pop("exif", None)
            out = io.BytesIO()
            if kind == "JPEG" and found.mode not in ("L", "RGB"):
                found = found.convert("RGB")
            found.save(out, kind, quality=self.quality, icc_profile=profile, exif=b"")
            return Resized(out.getvalue(), len(data), before, size[0] * size[1])


def _most_pixels(opened: Any, size: int) -> float:
    """How many pixels `size` bytes of an image can hold."""
    if opened.format == "JPEG":
        return _PER_BYTE * size
    if opened.format == "PNG":
        bits = {"1": 1, "P": 1, "L": 2}.get(opened.mode, 8 * len(opened.getbands()))
        return _INFLATED * 8 * size / bits
    return math.inf  # WebP has a few bytes for a picture of one colour


def _colours(opened: Any) -> str:
    if "transparency" in opened.info or opened.mode in ("PA", "La", "RGBa"):
        return "RGBA"
    return "L" if opened.mode == "1" else "RGB"
