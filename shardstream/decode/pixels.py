"""Encoded images to pixels: JPEG by libjpeg-turbo, the other formats and odd JPEGs by Pillow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.decode import odd_pixels
from shardstream.decode.crops import Cut
from shardstream.decode.turning import turned
from shardstream.errors import require
from shardstream.format.pictures import MAX_PIXELS, orientation
from shardstream.storage.cancellation import current

__all__ = ["Header", "header", "region", "stored", "whole"]

Data = bytes | memoryview
Pixels = NDArray[np.uint8]
Memory = Callable[[int, int], Pixels]

_LOCAL = threading.local()
_KEPT = 48 << 20  # bytes that a thread keeps at most for its next image


class Header(NamedTuple):
    """What is known of an image before it is decoded.

    Attributes:
        height: Of the image when it is turned as was asked for, in pixels.
        width: Its width then.
        turn: The EXIF orientation of what the decoder gives; 1 if it need not be turned.
    """

    height: int
    width: int
    turn: int


def _buffer(size: int) -> Pixels:
    """At least `size` bytes of this thread. New memory for each image would be zeroed by the kernel."""
    found: Pixels | None = getattr(_LOCAL, "buffer", None)
    if size > _KEPT:
        return np.empty(size, np.uint8)
    if found is None or len(found) < size:
        found = _LOCAL.buffer = np.empty(size, np.uint8)
    return found


def _is_jpeg(data: Data) -> bool:
    return bytes(data[:2]) == b"\xff\xd8"


def header(data: Data, upright: bool = True, max_pixels: int = MAX_PIXELS) -> Header:
    """The size of an image, and how it has to be turned.

    Args:
        data: The encoded image.
        upright: Whether the image is turned as its EXIF orientation says.
        max_pixels: The most pixels that an image may have.

    Raises:
        ValueError, OSError: There is no header, or the image has more pixels.
    """
    if not _is_jpeg(data):
        found = Header(*odd_pixels.look(data, upright))
    else:
        try:
            height, width, _, _ = require("simplejpeg", "images").decode_jpeg_header(data)
        except ValueError:  # Pillow reads headers with harmless errors, too
            found = Header(*odd_pixels.look(data, upright))
        else:
            turn = orientation(data) if upright else 1
            found = Header(width, height, turn) if turn > 4 else Header(height, width, turn)
    if found.height * found.width > max_pixels:
        raise ValueError(f"{found.width} x {found.height} pixels are more than max_pixels={max_pixels:,}")
    return found


def region(data: Data, head: Header, how: Cut, memory: Memory) -> Pixels:
    """A part of an image, decoded no larger than needed if its format allows it.

    Args:
        data: The encoded image.
        head: What `header` returned.
        how: Which part, and at which scale.
        memory: From a height and a width in pixels to an array uint8 [height, width, 3] for the part.

    Returns:
        RGB, uint8 [height, width, 3]: `memory`, filled.

    Raises:
        ValueError, OSError: The image is damaged, or ends early.
    """
    if _is_jpeg(data):
        scale = how.scale
        high, wide = -(-head.height // scale), -(-head.width // scale)
        buffer = _buffer(3 * high * wide)
        least = (wide, high) if head.turn > 4 else (high, wide)
        decode = require("simplejpeg", "images").decode_jpeg
        try:
            found = decode(data, min_height=least[0], min_width=least[1], min_factor=scale, buffer=buffer)
        except ValueError:  # a warning of libjpeg, which may be harmless
            return _tolerated(odd_pixels.region(data, head.turn, how, memory))
        part = turned(found, head.turn)[how.top : how.bottom, how.left : how.right]
        made = memory(*part.shape[:2])
        np.copyto(made, part)
        return made
    return odd_pixels.region(data, head.turn, how, memory)


def whole(data: Data, upright: bool = True, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The pixels of an image, RGB, uint8 [height, width, 3], in memory of their own.

    Args:
        data: The encoded image.
        upright: Whether the image is turned as its EXIF orientation says.
        max_pixels: The most pixels that an image may have.

    Raises:
        ValueError, OSError: The image is damaged, ends early or is too large.
    """
    head = header(data, upright, max_pixels)
    if not _is_jpeg(data):
        return odd_pixels.whole(data, head.turn)
    try:
        pixels: Pixels = require("simplejpeg", "images").decode_jpeg(data)
    except ValueError:
        return _tolerated(odd_pixels.whole(data, head.turn))
    return np.ascontiguousarray(turned(pixels, head.turn))


def stored(data: Data, upright: bool = False, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """The values of an image as they are stored, in memory of their own.

    Args:
        data: The encoded image.
        upright: Whether the image is turned as its EXIF orientation says.
        max_pixels: The most pixels that an image may have.

    Returns:
        [height, width], or [height, width, channels] if there are several channels. Palettes give the numbers
        of their colours, uint8. Images of 1 bit give bool, of 8 bits uint8, of 16 bits uint16, of 32 bits
        int32 or float32.

    Raises:
        ValueError, OSError: The image is damaged, ends early or is too large, or Pillow cannot read all of
            its bits.
    """
    head = header(data, upright, max_pixels)
    return odd_pixels.values(data, head.turn)


def _tolerated(pixels: Pixels) -> Pixels:
    """Count a JPEG that Pillow has read."""
    current().met.append("tolerated")
    return pixels
