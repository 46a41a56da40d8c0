"""The inputs of a DALI graph, and what each of them gets of a sample."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shardstream.dali import checks
from shardstream.decode import pixels
from shardstream.decode.registry import Data, decode_field, find
from shardstream.errors import SourceError
from shardstream.format.kinds import PIXELS, SOUNDS, extension
from shardstream.format.pictures import MAX_PIXELS

__all__ = ["NUMBERS", "ROLES", "Input", "kind_of"]

Kind = Literal["image", "audio", "number", "stored", "bytes"]

_OBJECT = re.compile(r"<_io\.BytesIO object at 0x[0-9a-f]+>")  # in messages of soundfile

NUMBERS = ("cls", "cls2", "index", "id")  # fields that graphs get as int64, not as bytes
ROLES = {"image": tuple(PIXELS), "audio": SOUNDS}


def kind_of(field: str, codec: str) -> Kind:
    """What a field holds, of what DALI knows."""
    kind = extension(codec or field)
    if field in NUMBERS or kind in NUMBERS:
        return "number"
    return "image" if kind in PIXELS else "audio" if kind in SOUNDS else "bytes"


@dataclass(frozen=True)
class Input:
    """One parameter of a graph.

    Args:
        name: Of the parameter.
        fields: The fields that may hold it. The first of them that a sample has is taken.
        kind: What it gets: an "image" or a sound, "audio", as an encoded file; the value of a "number"; the
            values of an image as they are "stored"; or "bytes".
        role: Whether the parameter stands for a kind, "image" or "audio". It then gets what our own decoders
            decode, in a format that DALI decodes to the same. Else it gets what is stored.
        default: Of the parameter, if samples may lack the field; else `Input`.
        upright: Whether images are turned as their EXIF orientation says.
        max_pixels: The most pixels that an image may have.
    """

    name: str
    fields: tuple[str, ...]
    kind: Kind
    role: bool = False
    default: Any = None
    optional: bool = False
    upright: bool = True
    max_pixels: int = MAX_PIXELS

    @property
    def files(self) -> bool:
        """Whether it gets files that DALI decodes."""
        return self.kind in ("image", "audio")

    def of(self, columns: Mapping[str, Any], row: int) -> tuple[str, Data | None]:
        """The field that a sample has, and its bytes; None if it has none."""
        for field in self.fields:
            if (data := columns[field][row]) is not None:
                return field, data
        return self.fields[0], None

    def value(
        self, field: str, data: Data, codec: str, careful: bool, doubt: bool
    ) -> tuple[Any, tuple[int, int]]:
        """What the graph gets of a sample.

        Args:
            field: The field that is taken.
            data: Its bytes.
            codec: Of the field.
            careful: Whether files are checked that the graph gets as they are stored.
            doubt: Whether files are decoded here, to see that they can be.

        Returns:
            Bytes, an array or a number; and height and width of an image in pixels, if they were looked at.

        Raises:
            Exception: The data is damaged.
        """
        if self.kind == "number":
            return decode_field(field, data, codec=codec), (0, 0)
        if self.kind == "stored":
            return _stored(data, self.max_pixels)
        if not self.files or not (self.role or careful):
            return data, (0, 0)
        if self.kind == "image":
            found, size = checks.image(data, self.upright, self.max_pixels, doubt)
        else:
            found, size = checks.sound(data, _decoder(field, codec), doubt), (0, 0)
        return (found if self.role else data), size

    def failed(self, field: str, error: object) -> str:
        """What is told of an error."""
        noun = {"audio": "sound", "number": "number", "bytes": "data"}.get(self.kind, "image")
        return f"no {noun} in field {field} ({_OBJECT.sub('the data', str(error))})"

    def absent(self) -> Any:
        """What the graph gets of a sample without the field, or with one that is damaged."""
        if self.kind == "number":
            return self.default if isinstance(self.default, int) else -1
        if self.kind == "stored":
            return np.zeros((64, 64, 1), np.uint16)
        if self.kind == "image":
            return b"P6\n64 64\n255\n" + bytes(3 * 64 * 64)
        return _silence() if self.kind == "audio" else b""


def _decoder(field: str, codec: str) -> Callable[[Data], tuple[Any, int]]:
    found = find(field, None, codec)
    if found is None:
        raise SourceError(f"there is no decoder for {extension(codec or field)}; register one by ss.decoder")
    return found


def _stored(data: Data, max_pixels: int) -> tuple[Any, tuple[int, int]]:
    """Values as uint16 [height, width, channels]: all of a graph's batches have one dtype."""
    found = pixels.stored(data, max_pixels=max_pixels)
    small = found.dtype.kind in "bu" and found.dtype.itemsize <= 2
    if not small and (found.dtype.kind not in "iu" or found.min() < 0 or found.max() > 0xFFFF):
        raise ValueError(f"values of {found.dtype}, where DALI gets 16 bits")
    found = found.astype(np.uint16, copy=False)
    return (found[:, :, None] if found.ndim == 2 else found), (found.shape[0], found.shape[1])


def _silence() -> bytes:
    """A WAV file with 100 ms of silence."""
    sound = bytes(3200)
    form = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16, b"data", len(sound))
    return b"RIFF" + struct.pack("<I", 4 + len(form) + len(sound)) + b"WAVE" + form + sound
