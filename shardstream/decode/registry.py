"""Decodes a field by the last extension of its name.

A field stays bytes if no decoder is registered for it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from shardstream.decode import arrays, audio, pixels
from shardstream.errors import MissingExtraError, OptionError, SourceError, reason
from shardstream.format.kinds import PIXELS, extension
from shardstream.storage.fetch.cancellable_map import cancellable_map

__all__ = ["QUICK", "decode_field", "decode_values", "decoder", "find"]

Decoder = Callable[[bytes], Any]
Data = bytes | memoryview
Mode = bool | Literal["stored", "view"] | Callable[[Data], Any]
F = TypeVar("F", bound=Decoder)
B = TypeVar("B", bound=Callable[[Data], Any])

QUICK = {"txt", "text", "cls", "cls2", "json"}  # to decode these costs less than to change the thread

_DECODERS: dict[str, Callable[[Data], Any]] = {}
_TOKENS: dict[object, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def decoder(*extensions: str) -> Callable[[F], F]:
    """Register a function that decodes fields.

    Each process that decodes has to run the registration. So put it at the top of a module.

    Args:
        extensions: The last extensions of the names of fields, such as "mp4".

    Returns:
        A decorator for a function from bytes to a value.

    Raises:
        OptionError: There is no extension, or one is empty.
    """
    if not extensions or not all(isinstance(name, str) and name for name in extensions):
        raise OptionError(f"decoder{extensions!r} needs extensions, such as @decoder('mp3')")

    def register(function: F) -> F:
        # The user's function gets a copy, since the data may be a view of memory that is used again.
        _register(extensions, lambda data: function(bytes(data)))
        return function

    return register


def _own(*extensions: str) -> Callable[[B], B]:
    """Register a function that takes any buffer. It must copy the bytes that its value refers to."""

    def register(function: B) -> B:
        _register(extensions, function)
        return function

    return register


def _register(extensions: Sequence[str], function: Callable[[Data], Any]) -> None:
    for name in extensions:
        _DECODERS[extension(name)] = function


def find(
    field: str, dtype: str | None = None, codec: str | None = None, mode: Mode = True
) -> Callable[[Data], Any] | None:
    """The decoder of a field; None if the field stays bytes.

    Args:
        field: The name of the field.
        dtype: The dtype of tokens, "uint16" or "uint32"; None for other fields.
        codec: The extension by which the field is decoded, if it is not that of the name.
        mode: True decodes by the extension. "stored" gives the values of an image as they are stored. False
            leaves the field bytes. "view" gives the bytes without a copy. Or the decoder itself.
    """
    if mode == "view":
        return _view
    if not mode:
        return None
    if callable(mode):
        return mode
    if mode == "stored":
        return pixels.stored
    kind = extension(codec or field)
    if kind == "tokens" and dtype is not None and "tokens" not in _DECODERS:
        # A copy, so that the user may write to it, and so that it does not refer to the memory of the frame.
        return lambda data: np.frombuffer(data, _TOKENS[dtype]).copy()
    return _DECODERS.get(kind)


def decode_field(
    field: str,
    data: Data,
    *,
    dtype: str | None = None,
    codec: str | None = None,
    mode: Mode = True,
    key: str = "",
    shard: str = "",
) -> Any:
    """The value of one field.

    Args:
        field: The name of the field.
        data: Its bytes.
        dtype: See `find`.
        codec: See `find`.
        mode: See `find`.
        key: The key of the sample, for messages.
        shard: The name of its shard, for messages.

    Raises:
        SourceError: The field cannot be decoded. The message names the sample and the field.
        MissingExtraError: The decoder needs a package that is not installed.
    """
    function = find(field, dtype, codec, mode)
    try:
        return bytes(data) if function is None else function(data)
    except MissingExtraError:
        raise
    except Exception as error:
        raise SourceError(
            f"sample {key!r}{' of ' * bool(shard)}{shard}, field {field!r}: cannot decode {len(data)} bytes "
            f"as {extension(codec or field)} ({reason(error)})"
        ) from error


def decode_values(
    field: str,
    column: Sequence[Data | None],
    keys: Sequence[str],
    *,
    dtype: str | None = None,
    codec: str | None = None,
    mode: Mode = True,
    shards: Callable[[], Sequence[str]] | None = None,
) -> list[Any]:
    """The values of one field of many samples.

    Args:
        field: The name of the field.
        column: The bytes of each sample; None if a sample lacks the field.
        keys: The key of each sample, for messages.
        dtype: See `find`.
        codec: See `find`.
        mode: See `find`.
        shards: Returns the name of each sample's shard, for messages.

    Returns:
        The value of each sample; None if a sample lacks the field.

    Raises:
        SourceError: A field cannot be decoded.
    """
    function = find(field, dtype, codec, mode) or bytes
    try:
        if not mode or mode == "view" or extension(codec or field) in QUICK:
            return [None if data is None else function(data) for data in column]
        return cancellable_map(lambda data: None if data is None else function(data), column)
    except Exception:  # noqa: BLE001 - decode one by one, so that the error names the sample
        names = [""] * len(keys) if shards is None else shards()
        return [
            None
            if data is None
            else decode_field(field, data, dtype=dtype, codec=codec, mode=mode, key=key, shard=shard)
            for key, shard, data in zip(keys, names, column, strict=True)
        ]


def _view(data: Data) -> memoryview:
    return memoryview(data).toreadonly()


@_own("txt", "text", "transcript")
def _text(data: Data) -> str:
    return str(data, "utf-8")


@_own("json", "jsn")
def _json(data: Data) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        # NaN, Infinity and halves of surrogate pairs, as Python writes them.
        try:
            return json.loads(bytes(data))
        except ValueError:
            pass
        raise


@_own("mp", "msg")
def _msgpack(data: Data) -> Any:
    return msgspec.msgpack.decode(data)


@_own("cls", "cls2", "index", "inx", "count", "id")
def _integer(data: Data) -> int:
    return int(data)


_own("npy")(arrays.decode)


@_own("npz")
def _arrays(data: Data) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return dict(found)


@_own(*PIXELS)
def _image(data: Data) -> Any:
    """An array uint8 [height, width, 3], RGB, turned as the EXIF orientation says."""
    return pixels.whole(data)


@_own(*audio.EXTENSIONS)
def _audio(data: Data) -> tuple[Any, int]:
    """An array float32 [channels, time] with values from -1 to 1, and the rate in Hz."""
    return audio.decode(data)
