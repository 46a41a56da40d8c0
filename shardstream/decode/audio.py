"""Sound, decoded by soundfile; by PyAV what soundfile does not read. The content decides, not the name.

Sound that is cut off is an error; soundfile gives what is left of it.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from shardstream.decode import audio_av
from shardstream.errors import SourceError, require

__all__ = ["EXTENSIONS", "decode"]

EXTENSIONS = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "aif", *audio_av.EXTENSIONS)


def decode(data: bytes | memoryview) -> tuple[Any, int]:
    """An array float32 [channels, time] with values from -1 to 1, and the rate in Hz.

    Raises:
        SourceError: It is cut off, or no sound that is known.
        MissingExtraError: soundfile or PyAV is not installed.
    """
    if audio_av.is_known(data):
        return audio_av.decode(data)
    soundfile = require("soundfile", "audio")
    _check_size(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, frames = file.samplerate, file.frames
            # A file of GSM cannot seek, and must be told how much is read. A byte holds 5 frames at most.
            count = -1 if file.seekable() else min(frames, 8 * len(data))
            found = file.read(count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:  # its text has the address of the buffer
        raise SourceError(error.error_string) from error
    # A WAV file says how much there is, so that an empty one is whole.
    if len(found) < frames or (not frames and bytes(data[:4]) != b"RIFF"):
        raise SourceError(f"{len(found)} of {frames or 'an unknown number of'} frames: it is cut off")
    return np.ascontiguousarray(found.T), rate


def _check_size(data: bytes | memoryview) -> None:
    """Raise SourceError if WAV or AIFF says that it is longer, or if Ogg has no last page."""
    head = bytes(data[:12])
    if head[:4] == b"OggS":
        _check_pages(data)
        return
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        (size,) = struct.unpack("<I", head[4:8])
    elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        (size,) = struct.unpack(">I", head[4:8])
    else:
        return
    # A writer that cannot seek back leaves the largest number, or none. Some leave out a byte of padding.
    if size not in (0, 0xFFFFFFFF) and size + 8 > len(data) + 1:
        raise SourceError(f"{len(data)} of {size + 8} bytes: it is cut off")


def _check_pages(data: bytes | memoryview) -> None:
    at = flags = 0
    while at < len(data):
        if len(data) < at + 27 or bytes(data[at : at + 4]) != b"OggS":
            raise SourceError(f"no whole page of Ogg at byte {at}: it is cut off or damaged")
        flags, segments = data[at + 5], data[at + 26]
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
    if at != len(data) or not flags & 4:  # the flag of the last page
        raise SourceError("the last page of Ogg is not there: it is cut off")
