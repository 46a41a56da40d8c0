"""Images made smaller when they are packed: the shorter side to N pixels, upright, encoded again."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

from shardstream.errors import OptionError, require

__all__ = ["Shrink", "Shrunk"]

_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_MODES = ("L", "RGB", "LA", "RGBA")


class Shrunk(NamedTuple):
    """One image: its bytes, and how many bytes and pixels it had before and has now."""

    data: bytes
    bytes_before: int
    pixels_before: int
    pixels: int


@dataclass(frozen=True)
class Shrink:
    """side: pixels of the shorter side, which is never enlarged.  quality: of JPEG and WebP, 1 to 100.

    Images that are small enough and upright stay the bytes they are, and so do GIF, BMP, TIFF and images
    of more than 8 bits. The same input and library versions give the same bytes.
    """

    side: int
    quality: int = 90

    def __post_init__(self) -> None:
        for name, value, most in (("resize", self.side, 1 << 15), ("quality", self.quality, 100)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise OptionError(f"{name}={value!r} must be an int from 1 to {most}")
        require("PIL.Image", "images")

    def apply(self, extension: str, data: bytes) -> Shrunk | None:
        """The image made smaller, None for kinds that stay; raises ValueError or OSError for damaged ones."""
        if extension not in _FORMATS:
            return None
        image: Any = require("PIL.Image", "images")
        turn = require("PIL.ImageOps", "images").exif_transpose
        with image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as opened:
            if opened.mode.startswith(("I", "F")):
                return None
            before = opened.width * opened.height
            upright = opened.getexif().get(_ORIENTATION, 1) == 1
            share = self.side / min(opened.size)
            if share >= 1 and upright:
                opened.load()  # raises what it finds
                return Shrunk(data, len(data), before, before)
            profile = opened.info.get("icc_profile")
            size = tuple(max(1, round(side * min(1.0, share))) for side in opened.size)
            # JPEGs decode quicker at a half or a quarter; twice the target is left for the filter.
            opened.draft(None, (2 * size[0], 2 * size[1]))
            found = opened if opened.mode in _MODES else opened.convert(_colours(opened))
            found = turn(found.resize(size, image.Resampling.LANCZOS) if share < 1 else found)
            found.info.pop("exif", None)
            kind, out = _FORMATS[extension], io.BytesIO()
            if kind == "JPEG" and found.mode not in ("L", "RGB"):
                found = found.convert("RGB")
            found.save(out, kind, quality=self.quality, icc_profile=profile, exif=b"")
            return Shrunk(out.getvalue(), len(data), before, size[0] * size[1])


def _colours(opened: Any) -> str:
    if "transparency" in opened.info or opened.mode in ("PA", "La", "RGBa"):
        return "RGBA"
    return "L" if opened.mode == "1" else "RGB"
