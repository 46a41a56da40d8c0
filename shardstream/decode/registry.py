"""Decodes a field by the last extension of its name.

A field that no decoder is registered for stays bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from shardstream.decode import pixels
from shardstream.errors import MissingExtraError, OptionError, SourceError, require

__all__ = ["decode_field", "decode_values", "decoder", "extension", "find"]

Decoder = Callable[[bytes], Any]
Data = bytes | memoryview
F = TypeVar("F", bound=Decoder)
B = TypeVar("B", bound=Callable[[Data], Any])

_DECODERS: dict[str, Callable[[Data], Any]] = {}
_TOKENS: dict[object, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def decoder(*extensions: str) -> Callable[[F], F]:
    """Register a function from bytes to a value for fields that end in one of `extensions`.

    Processes that decode must have run the registration too: put it at the top of a module.
    """
    if not extensions or not all(isinstance(name, str) and name for name in extensions):
        raise OptionError(f"decoder{extensions!r} needs extensions, such as @decoder('mp3')")

    def register(function: F) -> F:
        # What is decoded may be a view of memory that will be used again: nobody else may keep that.
        _register(extensions, lambda data: function(bytes(data)))
        return function

    return register


def _own(*extensions: str) -> Callable[[B], B]:
    """Register a function that takes any buffer, and keeps nothing of it."""

    def register(function: B) -> B:
        _register(extensions, function)
        return function

    return register


def _register(extensions: Sequence[str], function: Callable[[Data], Any]) -> None:
    for name in extensions:
        _DECODERS[extension(name)] = function


def extension(field: str) -> str:
    """The last extension of a field's name: "seg.png" -> "png"."""
    return field.rpartition(".")[2].lower()


def find(field: str, dtype: str | None = None, codec: str | None = None) -> Callable[[Data], Any] | None:
    """The decoder of a field, None where it stays bytes.

    codec: the manifest's word on the kind of field, where it differs from the name.
    dtype: "uint16" or "uint32", for tokens.
    """
    kind = extension(codec or field)
    if kind == "tokens" and dtype is not None and "tokens" not in _DECODERS:
        # A copy: an array that the user may write to, and that does not hold the frame.
        return lambda data: np.frombuffer(data, _TOKENS[dtype]).copy()
    return _DECODERS.get(kind)


def decode_field(
    field: str, data: Data, *, dtype: str | None = None, codec: str | None = None, key: str = ""
) -> Any:
    """The value of one field, as `find` decodes it. Raises SourceError naming `key` and the field."""
    function = find(field, dtype, codec)
    try:
        return bytes(data) if function is None else function(data)
    except MissingExtraError:
        raise
    except Exception as error:
        raise SourceError(
            f"sample {key!r}, field {field!r}: cannot decode {len(data)} bytes "
            f"as {extension(codec or field)} ({error})"
        ) from error


def decode_values(
    field: str,
    column: Sequence[Data | None],
    keys: Sequence[str],
    *,
    dtype: str | None = None,
    codec: str | None = None,
) -> list[Any]:
    """`decode_field` of many samples, None where one lacks the field."""
    function = find(field, dtype, codec) or bytes
    try:
        return [None if data is None else function(data) for data in column]
    except Exception:  # noqa: BLE001 - decoding one by one finds out whose it is
        return [
            None if data is None else decode_field(field, data, dtype=dtype, codec=codec, key=key)
            for key, data in zip(keys, column, strict=True)
        ]


@_own("txt", "text", "transcript")
def _text(data: Data) -> str:
    return str(data, "utf-8")


@_own("json", "jsn")
def _json(data: Data) -> Any:
    return msgspec.json.decode(data)


@_own("mp", "msg")
def _msgpack(data: Data) -> Any:
    return msgspec.msgpack.decode(data)


@_own("cls", "cls2", "index", "inx", "count", "id")
def _integer(data: Data) -> int:
    return int(data)


@_own("npy")
def _array(data: Data) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)


@_own("npz")
def _arrays(data: Data) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return dict(found)


@_own(*pixels.KINDS)
def _image(data: Data) -> Any:
    """A uint8 array [height, width, 3], RGB."""
    return pixels.whole(data)


@_own("wav", "flac", "ogg")
def _audio(data: Data) -> tuple[Any, int]:
    """A float32 array [channels, frames] of values from -1 to 1, and the frames of a second."""
    found, rate = require("soundfile", "audio").read(io.BytesIO(data), dtype="float32", always_2d=True)
    return np.ascontiguousarray(found.T), rate
