"""Decodes a field by the last extension of its name.

A field that no decoder is registered for stays bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np

from shardstream.errors import MissingExtraError, OptionError, SourceError, require

__all__ = ["decode_field", "decoder", "extension"]

Decoder = Callable[[bytes], Any]
F = TypeVar("F", bound=Decoder)

_DECODERS: dict[str, Decoder] = {}
_TOKENS: dict[object, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def decoder(*extensions: str) -> Callable[[F], F]:
    """Register a function from bytes to a value for fields that end in one of `extensions`.

    Processes that decode must have run the registration too: put it at the top of a module.
    """
    if not extensions or not all(isinstance(name, str) and name for name in extensions):
        raise OptionError(f"decoder{extensions!r} needs extensions, such as @decoder('mp3')")

    def register(function: F) -> F:
        for name in extensions:
            _DECODERS[extension(name)] = function
        return function

    return register


def extension(field: str) -> str:
    """The last extension of a field's name: "seg.png" -> "png"."""
    return field.rpartition(".")[2].lower()


def decode_field(
    field: str, data: bytes, *, dtype: str | None = None, codec: str | None = None, key: str = ""
) -> Any:
    """The value of one field.

    codec: the manifest's word on the kind of field, where it differs from the name.
    dtype: "uint16" or "uint32", for tokens. Raises SourceError naming `key` and the field.
    """
    kind = extension(codec or field)
    try:
        if kind == "tokens" and dtype is not None and "tokens" not in _DECODERS:
            # A copy: an array that the user may write to, and that does not hold the frame.
            return np.frombuffer(data, _TOKENS[dtype]).copy()
        function = _DECODERS.get(kind)
        return data if function is None else function(data)
    except MissingExtraError:
        raise
    except Exception as error:
        raise SourceError(
            f"sample {key!r}, field {field!r}: cannot decode {len(data)} bytes as {kind} ({error})"
        ) from error


@decoder("txt", "text")
def _text(data: bytes) -> str:
    return str(data, "utf-8")


@decoder("json")
def _json(data: bytes) -> Any:
    return msgspec.json.decode(data)


@decoder("cls", "cls2", "index", "id")
def _integer(data: bytes) -> int:
    return int(data)


@decoder("npy")
def _array(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)


@decoder("jpg", "jpeg", "png", "webp")
def _image(data: bytes) -> Any:
    """A uint8 array [height, width, 3], RGB."""
    image = require("PIL.Image", "images")
    with image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as opened:
        return np.array(opened.convert("RGB"))
