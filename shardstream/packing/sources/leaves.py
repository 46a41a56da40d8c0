"""Values that other tools store without a format of their own, as files of one."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence

from shardstream.errors import SourceError, require

# NumPy's names of dtypes, and what a .npy file calls them.
DTYPES = {
    "bool": "|b1", "uint8": "|u1", "int8": "|i1", "uint16": "<u2", "int16": "<i2", "uint32": "<u4",
    "int32": "<i4", "uint64": "<u8", "int64": "<i8", "float16": "<f2", "float32": "<f4", "float64": "<f8",
    "complex64": "<c8", "complex128": "<c16",
}  # fmt: skip


def npy(dtype: str, shape: Sequence[int], values: bytes) -> bytes:
    """A .npy file of an array. It is made without NumPy, which would be loaded for this alone.

    Args:
        dtype: NumPy's name of the dtype, one of `DTYPES`.
        shape: The length of each axis.
        values: The values, little-endian, the last axis first.

    Raises:
        SourceError: The values are not as many as the shape says.
    """
    descr = DTYPES[dtype]
    if math.prod(shape) * int(descr[2:]) != len(values):
        raise SourceError(f"{len(values)} bytes are no array of {dtype} with shape {tuple(shape)}")
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple(map(int, shape))}, }}"
    # The magic, the version and the length take 10 bytes; all that is before the values is a multiple of 64.
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin-1") + values


def png_of_pil(data: bytes) -> bytes:
    """The PNG of an image that is stored as width, height, the length of its mode, the mode, and its pixels.

    Raises:
        SourceError: It is damaged, or PNG has no such mode.
        MissingExtraError: Pillow is not installed.
    """
    images = require("PIL.Image", "images")
    try:
        width, height, size = struct.unpack_from("<3I", data)
        mode = bytes(data[12 : 12 + size]).decode()
        if width * height > 8 * (len(data) - 12 - size):  # no memory for what is not there; 8 pixels a byte
            raise ValueError(f"{width} x {height} pixels in {len(data)} bytes")
        buffer = io.BytesIO()
        images.frombytes(mode, (width, height), bytes(data[12 + size :])).save(buffer, "png")
    except Exception as error:  # Pillow raises what it likes
        raise SourceError(f"not the pixels of an image that PNG can hold ({error})") from error
    return buffer.getvalue()
