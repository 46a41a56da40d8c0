"""Values of rows as the bytes of fields."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from shardstream.errors import SourceError
from shardstream.packing.sources.base import NO_COUNTS

__all__ = ["field_bytes", "text_bytes", "to_json"]

_LONE = re.compile("[\ud800-\udfff]")
_encode = msgspec.json.Encoder().encode


def to_json(value: object) -> bytes:
    """A value as JSON. What JSON does not have, NaN and half of a surrogate pair, is as Python writes it.

    Raises:
        TypeError, ValueError, OverflowError, RecursionError: JSON cannot hold it.
    """
    try:
        data = _encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair
        data = b"null"
    # The encoder writes null for NaN and Infinity.
    if b"null" not in data or (data != b"null" and _is_finite(value)):
        return data
    return json.dumps(value, separators=(",", ":"), default=msgspec.to_builtins).encode()


def _is_finite(value: object) -> bool:
    left = [value]  # a loop, since an object may lie as deep as the stack of Python is high
    while left:
        value = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
    return True


def text_bytes(text: str) -> tuple[bytes, Mapping[str, int]]:
    """A text in UTF-8, and what is counted of it: half of a surrogate pair becomes U+FFFD."""
    try:
        return text.encode(), NO_COUNTS
    except UnicodeEncodeError:
        return _LONE.sub("\ufffd", text).encode(), {"lone_surrogates": 1}


def field_bytes(field: str, value: Any) -> bytes:
    """The bytes of a value as a field.

    Raises:
        SourceError: The value is missing, or cannot be stored.
    """
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):  # an image or audio of HF
        return bytes(value["bytes"])
    if value is None:
        raise SourceError(f"field {field!r} has no value")
    try:
        return to_json(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SourceError(f"field {field!r} cannot be stored as JSON ({error})") from error
