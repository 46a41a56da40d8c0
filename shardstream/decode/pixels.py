"""Encoded images to RGB pixels: JPEG by libjpeg-turbo, PNG and WebP by Pillow."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import require

__all__ = ["KINDS", "reduced", "size", "whole"]

Data = bytes | memoryview
Pixels = NDArray[np.uint8]

KINDS = ("jpg", "jpeg", "png", "webp")
# What Pillow takes for an attack as well: a header may claim any size.
_MOST = 2 * 89_478_485
_FORMATS = ("JPEG", "PNG", "WEBP")
_LOCAL = threading.local()


def _is_jpeg(data: Data) -> bool:
    return bytes(data[:2]) == b"\xff\xd8"


def _checked(height: int, width: int) -> tuple[int, int]:
    if height * width > _MOST:
        raise ValueError(f"{width} x {height} pixels are more than {_MOST:,}")
    return height, width


def size(data: Data) -> tuple[int, int]:
    """Height and width, from the header alone; raises ValueError, or OSError, where there is none."""
    if _is_jpeg(data):
        height, width, _, _ = require("simplejpeg", "images").decode_jpeg_header(data)
        return _checked(height, width)
    with require("PIL.Image", "images").open(io.BytesIO(data), formats=_FORMATS) as opened:
        return _checked(opened.height, opened.width)


def reduced(data: Data, full: tuple[int, int], scale: int) -> tuple[Pixels, int]:
    """RGB [height, width, 3] at 1 / `scale` where the format can do that, and the scale it then is.

    full: what `size` said. The memory is the thread's own and used again by its next call.
    Raises ValueError or OSError for what is damaged, or ends early.
    """
    if not _is_jpeg(data):
        return _by_pillow(data), 1
    high, wide = -(-full[0] // scale), -(-full[1] // scale)
    buffer = getattr(_LOCAL, "buffer", None)
    if buffer is None or len(buffer) < 3 * high * wide:
        # Fresh memory for each image would be zeroed by the kernel, page by page, each time.
        buffer = _LOCAL.buffer = np.empty(3 * high * wide, np.uint8)
    decode = require("simplejpeg", "images").decode_jpeg
    return decode(data, min_height=high, min_width=wide, min_factor=scale, buffer=buffer), scale


def whole(data: Data) -> Pixels:
    """RGB [height, width, 3], in memory of its own."""
    if not _is_jpeg(data):
        return _by_pillow(data)
    size(data)
    pixels: Pixels = require("simplejpeg", "images").decode_jpeg(data)
    return pixels


def _by_pillow(data: Data) -> Pixels:
    image: Any = require("PIL.Image", "images")
    with image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        _checked(opened.height, opened.width)
        return np.array(opened.convert("RGB"))
