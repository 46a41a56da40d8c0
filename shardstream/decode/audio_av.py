"""Sound that soundfile does not read, decoded by the FFmpeg in PyAV: AAC and ALAC in MPEG-4, plain AAC, WMA.

FFmpeg decodes what is left of a file that is cut off, and says nothing. So the sizes that these formats
state are checked: of boxes (ISO/IEC 14496-12, 4.2), of ADTS frames (ISO/IEC 14496-3, 1.A.2), and of an ASF
file (its File Properties Object).
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from shardstream.errors import SourceError, require

__all__ = ["EXTENSIONS", "decode", "is_known"]

EXTENSIONS = ("m4a", "aac", "wma")
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_SHORT = 0.1  # seconds by which a stated duration may be longer: WMA states it with what comes before
_PADDING = 4096  # frames of silence that an encoder adds at most, to fill its last block


def is_known(data: bytes | memoryview) -> bool:
    """Whether these are bytes of a format of this module."""
    head = bytes(data[:16])
    return head[4:8] == b"ftyp" or head == _ASF or _is_adts(data, _tag_size(data))


def decode(data: bytes | memoryview) -> tuple[Any, int]:
    """An array float32 [channels, time] with values from -1 to 1, and the rate in Hz.

    Raises:
        SourceError: It is cut off or damaged, or there is no sound in it.
        MissingExtraError: PyAV is not installed.
    """
    av = require("av", "av")
    _check_size(data)
    try:
        # FFmpeg does not recognise a few frames of ADTS.
        form = "aac" if _is_adts(data, _tag_size(data)) else None
        with av.open(io.BytesIO(data), format=form) as file:
            if not file.streams.audio:
                raise SourceError("there is no sound in it")
            stream = file.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")
            parts = [part for frame in file.decode(stream) for part in resampler.resample(frame)]
            rate, base = int(stream.rate), stream.time_base
            seconds = None if stream.duration is None or base is None else stream.duration * base
    except av.FFmpegError as error:
        raise SourceError(f"{error.strerror}: it is cut off or damaged") from error
    if not parts:
        raise SourceError("there is no sound in it")
    found = np.concatenate([part.to_ndarray() for part in parts], axis=1)
    if seconds is not None:
        wanted = round(seconds * rate)
        if found.shape[1] < wanted - _SHORT * rate:
            raise SourceError(f"{found.shape[1]} of {wanted} frames: it is cut off")
        if bytes(data[4:8]) == b"ftyp" and found.shape[1] - wanted <= _PADDING:
            found = found[:, :wanted]
    return np.ascontiguousarray(found, np.float32), rate


def _check_size(data: bytes | memoryview) -> None:
    """Raise SourceError if the data says that it is longer."""
    if bytes(data[4:8]) == b"ftyp":
        _check_boxes(data)
    elif bytes(data[:16]) == _ASF:
        at = bytes(data[:4096]).find(_ASF_PROPERTIES)
        size = int.from_bytes(data[at + 40 : at + 48], "little") if at > 0 else 0
        if size > len(data):
            raise SourceError(f"{len(data)} of {size} bytes: it is cut off")
    else:
        _check_adts(data)


def _check_boxes(data: bytes | memoryview) -> None:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:  # the size is one of 64 bits
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size == 0 and len(data) - at >= 8:  # it reaches to the end, wherever that is
            return
        if size < 8 or at + size > len(data):
            name = bytes(data[at + 4 : at + 8]).decode("latin-1")
            raise SourceError(f"box {name!r} at byte {at} is not whole: it is cut off or damaged")
        at += size


def _tag_size(data: bytes | memoryview) -> int:
    """The bytes of an ID3 tag in front (id3.org, ID3v2.4, 3.1), or 0."""
    if bytes(data[:3]) != b"ID3" or len(data) < 10:
        return 0
    high, middle, low, lowest = data[6:10]
    return 10 + (high << 21 | middle << 14 | low << 7 | lowest) + (10 if data[5] & 0x10 else 0)


def _is_adts(data: bytes | memoryview, at: int) -> bool:
    # Twelve bits of sync, one of the version, and two of the layer, which are 0: in MP3 they never are.
    return len(data) >= at + 7 and struct.unpack(">H", data[at : at + 2])[0] & 0xFFF6 == 0xFFF0


def _check_adts(data: bytes | memoryview) -> None:
    at = _tag_size(data)
    while at < len(data):
        if bytes(data[at : at + 3]) == b"TAG" and len(data) - at == 128:  # ID3v1
            return
        size = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5 if _is_adts(data, at) else 0
        if size < 7 or at + size > len(data):
            raise SourceError(f"no whole frame of AAC at byte {at}: it is cut off or damaged")
        at += size
