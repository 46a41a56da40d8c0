"""What the bytes of an image say before it is decoded: its format, and how it has to be turned.

It needs no package, so that packers can ask it of each image.
"""

from __future__ import annotations

import struct

__all__ = ["MAX_PIXELS", "orientation", "picture_format"]

Data = bytes | memoryview

# More pixels are an attack, since a header may name any size. Pillow has the same limit.
MAX_PIXELS = 2 * 89_478_485
_ORIENTATION = 0x0112  # the EXIF tag
_SHORT = 3  # the EXIF type of its value
_EXIF = b"Exif\0\0"
_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # more than 4 GiB
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
}


def picture_format(data: Data) -> str | None:
    """The format of an image by its content, as Pillow names it; None if it is none that can be decoded."""
    begin = bytes(data[:16])
    if begin[:3] == b"\xff\xd8\xff":  # by far the most
        return "JPEG"
    if begin[:4] == b"RIFF" and begin[8:12] == b"WEBP":
        return "WEBP"
    if begin[4:8] == b"ftyp" and begin[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    return next((name for known, name in _BEGINNINGS.items() if begin.startswith(known)), None)


def orientation(data: Data) -> int:
    """The orientation that the EXIF data of a JPEG, PNG, WebP or TIFF asks for.

    Returns:
        1 to 8, as EXIF defines them. 1 is upright, and the answer if there is no EXIF data or none that can
        be read.
    """
    kind = picture_format(data)
    try:
        if kind == "JPEG":
            return _of_jpeg(data)
        if kind == "PNG":
            return _of_png(data)
        if kind == "WEBP":
            return _of_webp(data)
        return _of_tiff(data) if kind == "TIFF" else 1
    except (struct.error, IndexError):  # the file ends in the middle of what is read
        return 1


def _of_jpeg(data: Data) -> int:
    at, end = 2, len(data)
    while at + 4 <= end:
        if data[at] != 0xFF:  # bytes that belong to nothing
            skipped = bytes(data[at : at + (1 << 16)]).find(b"\xff")
            if skipped < 0:
                return 1
            at += skipped
        marker = data[at + 1]
        if marker == 0xFF:  # a byte to fill up
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # markers without content
            at += 2
        elif marker in (0xDA, 0xD9):  # the pixels, or the end
            return 1
        else:
            size = data[at + 2] << 8 | data[at + 3]
            if marker == 0xE1 and bytes(data[at + 4 : at + 10]) == _EXIF:
                return _of_tiff(data[at + 10 : at + 2 + size])
            at += 2 + size
    return 1


def _of_png(data: Data) -> int:
    at, end = 8, len(data)
    while at + 12 <= end:
        size, name = struct.unpack_from(">I4s", data, at)
        if name == b"eXIf":
            return _of_exif(data[at + 8 : at + 8 + size])
        if name == b"IEND":
            return 1
        at += 12 + size
    return 1


def _of_webp(data: Data) -> int:
    if bytes(data[12:16]) != b"VP8X" or not data[20] & 8:  # the bit says that there is EXIF data
        return 1
    at, end = 12, len(data)
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return _of_exif(data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return 1


def _of_exif(data: Data) -> int:
    return _of_tiff(data[6:] if bytes(data[:6]) == _EXIF else data)


def _of_tiff(data: Data) -> int:
    """The orientation in the first directory of a TIFF file, which EXIF data is, too."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(data[:4]))
    if order is None:
        return 1
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", data, entry)
        if tag == _ORIENTATION:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1
