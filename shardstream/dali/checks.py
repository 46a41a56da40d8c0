"""Encoded images and sounds before DALI gets them: an error in DALI would end its whole pipeline.

What DALI surely decodes as our own decoders do is handed over as it is stored. That is found out from a few
bytes, without a package. Anything else is decoded here, and handed over as a PPM or WAV file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from shardstream.errors import require
from shardstream.format.pictures import orientation

__all__ = ["image", "sound"]

Data = bytes | memoryview

_END = 64  # bytes at the end of a file in which its end mark is looked for
# Markers of JPEG frames that are baseline or progressive.
_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - {*_FRAMES, 0xC4, 0xC8, 0xCC}


def image(data: Data, upright: bool, max_pixels: int, doubt: bool) -> tuple[Any, tuple[int, int]]:
    """What DALI gets of an image, and its size.

    Args:
        data: The encoded image.
        upright: Whether it is turned as its EXIF orientation says.
        max_pixels: The most pixels that it may have.
        doubt: Decode it here in any case.

    Returns:
        The data, or a PPM file, uint8 [n]; and height and width in pixels, when it is turned.

    Raises:
        ValueError, OSError: The image is damaged, or has more pixels.
        MissingExtraError: It has to be decoded here, and Pillow or simplejpeg is not installed.
    """
    size = None if doubt else _plain_size(data)
    if size is None:
        return _decoded(data, upright, max_pixels)
    if upright and orientation(data) > 4:
        size = size[::-1]
    if size[0] * size[1] > max_pixels:
        raise ValueError(f"{size[1]} x {size[0]} pixels are more than max_pixels={max_pixels:,}")
    return data, size


def _decoded(data: Data, upright: bool, max_pixels: int) -> tuple[Any, tuple[int, int]]:
    from shardstream.decode import pixels
    from shardstream.decode.crops import Cut

    head = pixels.header(data, upright, max_pixels)
    size = head.height, head.width
    begin = b"P6\n%d %d\n255\n" % (head.width, head.height)
    made = np.empty(len(begin) + 3 * head.height * head.width, np.uint8)
    made[: len(begin)] = np.frombuffer(begin, np.uint8)
    place = made[len(begin) :].reshape(*size, 3)
    pixels.region(data, head, Cut(1, 0, 0, *size, *size), lambda height, width: place)
    return made, size


def _plain_size(data: Data) -> tuple[int, int] | None:
    """Height and width of an image as it is stored; None if DALI may fail on it or decode it otherwise."""
    begin = bytes(data[:4])
    try:
        if begin[:2] == b"\xff\xd8":
            return _jpeg_size(data) if b"\xff\xd9" in bytes(data[-_END:]) else None
        if begin == b"\x89PNG":
            height, width = struct.unpack_from(">2I", data, 16)[::-1]
            whole = b"IEND\xaeB`\x82" in bytes(data[-_END:])
            return (height, width) if whole and height and width and data[24] <= 8 else None
        return _webp_size(data) if begin == b"RIFF" else None
    except (struct.error, IndexError):  # it ends in its header
        return None


def _jpeg_size(data: Data) -> tuple[int, int] | None:
    """Of a JPEG of 8 bits in grey or three colours."""
    at, end = 2, len(data)
    while at + 4 <= end:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _FRAMES:
            precision, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            plain = precision == 8 and channels in (1, 3) and height and width
            return (height, width) if plain else None
        if marker in _OTHER_FRAMES or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _webp_size(data: Data) -> tuple[int, int] | None:
    """Of a WebP file without animation that is not cut off."""
    size, kind, chunk = struct.unpack_from("<I4s4s", data, 4)
    if kind != b"WEBP" or size + 8 > len(data):
        return None
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<2H", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if chunk == b"VP8X" and not data[20] & 2:
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return height, width
    return None


def sound(data: Data, decode: Callable[[Data], tuple[Any, int]], doubt: bool) -> Any:
    """What DALI gets of a sound: the data, or a WAV file, uint8 [n].

    Args:
        data: The encoded sound.
        decode: From it to float32 [channels, time] and the rate in Hz.
        doubt: Decode it here in any case.

    Raises:
        ValueError, RuntimeError: The sound is damaged.
        MissingExtraError: It has to be decoded here, and soundfile is not installed.
    """
    begin = bytes(data[:36])
    if begin[:4] == b"RIFF":
        _check_wav(data)
    if not doubt and (begin[:4] in (b"RIFF", b"fLaC") or (begin[:4] == b"OggS" and b"Opus" not in begin)):
        return data
    samples, rate = decode(data)
    file = io.BytesIO()
    require("soundfile", "audio").write(file, samples.T, rate, format="WAV", subtype="FLOAT")
    return np.frombuffer(file.getbuffer(), np.uint8)


def _check_wav(data: Data) -> None:
    """Raise ValueError if a WAV file ends too early: libsndfile gives its beginning as if it were all."""
    at, end = 12, len(data)
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"data":
            # A program that wrote to a pipe did not know the size, and gave the largest one.
            if at + 8 + size > end and size < 0x7FFF0000:
                raise ValueError(f"the file has {end - at - 8:,} of its {size:,} bytes of sound")
            return
        at += 8 + size + size % 2
    raise ValueError("the file ends in front of its sound")
