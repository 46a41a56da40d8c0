"""Images that Pillow reads: every format but sound JPEGs. Large ones are converted strip by strip."""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.decode.crops import Cut
from shardstream.decode.turning import REVERSED, before_turning, turned
from shardstream.errors import require
from shardstream.format.pictures import orientation, picture_format

__all__ = ["look", "region", "values", "whole"]

Data = bytes | memoryview
Pixels = NDArray[np.uint8]

_PLUGINS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "AVIF": "AvifImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
}
_ORIENTATION = 0x0112  # the EXIF tag
_STRIP = 1 << 19  # pixels that are converted at once
# A part of more pixels is made smaller before it is resized, so that its pixels are never in memory twice.
_LARGE = 1 << 24


def _opened(data: Data) -> Any:
    """An image of Pillow whose pixels are not decoded. The content alone decides on the format.

    `PIL.Image.open` would warn of images above its own limit, and its messages name objects.
    """
    image: Any = require("PIL.Image", "images")
    kind = picture_format(data)
    if kind is None:
        raise ValueError("it begins like no image that can be decoded")
    try:
        importlib.import_module(f"PIL.{_PLUGINS[kind]}")
        return image.OPEN[kind][0](io.BytesIO(data), "")
    except (ImportError, KeyError) as error:
        version = require("PIL", "images").__version__
        raise ValueError(f"Pillow {version} cannot read {kind}; install pillow>=11.3") from error
    except (SyntaxError, IndexError, TypeError, struct.error) as error:
        raise ValueError(f"no {kind} image that can be read: {error}") from error


def _turn(opened: Any, data: Data, upright: bool) -> int:
    """The orientation of what Pillow gives, so that `turned` makes of it what was asked for."""
    if opened.format == "TIFF":  # which Pillow turns by itself
        found = opened.tag_v2.get(_ORIENTATION, 1)
        return 1 if upright else REVERSED.get(found, 1)
    if not upright:
        return 1
    found = opened.getexif().get(_ORIENTATION, 1) if opened.format == "AVIF" else orientation(data)
    return found if found in REVERSED else 1


def _loaded(opened: Any) -> Any:
    """The image, decoded."""
    opened.load()
    # Some versions of Pillow give a PNG of 16 bits as one of 32 bits.
    return opened.convert("I;16") if opened.format == "PNG" and opened.mode == "I" else opened


def look(data: Data, upright: bool) -> tuple[int, int, int]:
    """Height and width in pixels when the image is turned, and the orientation of what is decoded."""
    with _opened(data) as opened:
        turn, (width, height) = _turn(opened, data, upright), opened.size
        return (width, height, turn) if turn > 4 else (height, width, turn)


def region(data: Data, turn: int, how: Cut, memory: Callable[[int, int], Pixels]) -> Pixels:
    """A part of an image, RGB, see `pixels.region`."""
    with _opened(data) as opened:
        found = _loaded(opened)
        width, height = opened.size[::-1] if turn > 4 else opened.size
        scale = how.scale
        top, left = how.top * scale, how.left * scale
        bottom, right = min(how.bottom * scale, height), min(how.right * scale, width)
        smaller = scale if (bottom - top) * (right - left) > _LARGE else 1
        made = memory(-(-(bottom - top) // smaller), -(-(right - left) // smaller))
        box = before_turning((top, left, bottom, right), (height, width), turn)
        # The turn is undone in a view of the memory, which is then filled as the image is stored.
        _copy(found, box, _rgb, turned(made, REVERSED[turn]), smaller)
        return made


def whole(data: Data, turn: int) -> Pixels:
    """All of an image, RGB, turned, in memory of its own."""
    with _opened(data) as opened:
        found = _loaded(opened)
        width, height = opened.size[::-1] if turn > 4 else opened.size
        made = np.empty((height, width, 3), np.uint8)
        _copy(found, (0, 0, opened.height, opened.width), _rgb, turned(made, REVERSED[turn]))
        return made


def values(data: Data, turn: int) -> NDArray[Any]:
    """The values of an image as they are stored, turned, in memory of their own."""
    if picture_format(data) == "PNG" and data[24] == 16 and data[25] != 0:
        raise ValueError("a PNG of 16 bits in colour or with alpha, of which Pillow reads 8 bits only")
    with _opened(data) as opened:
        found = _loaded(opened)
        first = np.asarray(found.crop((0, 0, 1, 1)))
        width, height = opened.size[::-1] if turn > 4 else opened.size
        made = np.empty((height, width, *first.shape[2:]), first.dtype.newbyteorder("="))
        _copy(found, (0, 0, opened.height, opened.width), lambda part: part, turned(made, REVERSED[turn]))
    if opened.format == "PNG" and data[25] == 0 and data[24] in (2, 4):
        made //= 255 // ((1 << data[24]) - 1)  # Pillow makes greys of 2 and 4 bits brighter
    return made


def _copy(
    opened: Any,
    box: tuple[int, int, int, int],
    convert: Callable[[Any], Any],
    place: NDArray[Any],
    smaller: int = 1,
) -> None:
    """Copy a part of an image, some rows at a time, since Pillow converts to new memory.

    Args:
        opened: The image, decoded.
        box: Top, left, bottom and right of the part, in pixels.
        convert: From a strip of the image to what is copied.
        place: Where the part is copied to.
        smaller: The part is made so many times smaller, by the mean of its pixels.
    """
    top, left, bottom, right = box
    rows = max(1, _STRIP // (right - left) // smaller) * smaller
    for begin in range(top, bottom, rows):
        strip = convert(opened.crop((left, begin, right, min(begin + rows, bottom))))
        at = (begin - top) // smaller
        made = np.asarray(strip if smaller == 1 else strip.reduce(smaller))
        np.copyto(place[at : at + len(made)], made)


def _rgb(part: Any) -> Any:
    """A part in 8 bits and three colours. Of 16 bits the higher 8 count; transparency does not."""
    if part.mode.startswith("I;16"):
        image: Any = require("PIL.Image", "images")
        part = image.fromarray((np.asarray(part) >> 8).astype(np.uint8))
    elif part.mode in ("I", "F"):
        raise ValueError("values of 32 bits, which are no colours: decode the field as 'stored'")
    part.info.pop("transparency", None)  # of which Pillow would warn
    return part if part.mode == "RGB" else part.convert("RGB")
