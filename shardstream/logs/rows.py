"""Rows: from a dict of Python, numpy and torch values to one line of JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from shardstream.errors import OptionError

__all__ = ["MARK", "decode", "encode"]

# A field of the rows that the log itself writes: it says what is missing. Its value is "dropped" or "cut".
MARK = "shardstream"

# JSON has no such numbers. These are the words that JSON has for them in protobuf, and that the casts of
# Python, pandas and SQL take: https://protobuf.dev/programming-guides/json/
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# The fields of a logging record that are text, whatever they say.
_TEXTS = frozenset({"level", "logger", "message", "exc_info", "stack_info"})


def _plain(value: Any) -> Any:
    """What a value of another type is written as."""
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)  # subclasses, as numpy.float64 is one
    to_list = getattr(value, "tolist", None)  # scalars and arrays of numpy and torch
    return str(value) if to_list is None else to_list()


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_decoder = msgspec.json.Decoder(dict[str, Any])


def encode(row: Mapping[str, Any]) -> bytes:
    """A row as one line, with its end.

    Numbers that JSON does not have become the words "NaN", "Infinity" and "-Infinity". Scalars and arrays of
    numpy and torch become numbers and lists. Any other value becomes the text that `str` makes of it.

    Raises:
        OptionError: A value cannot be written, such as a list that contains itself.
    """
    try:
        try:
            line = _encoder.encode(row)
            if b"null" in line:  # None, or a number that JSON does not have
                line = _encoder.encode(_worded(row))
        except UnicodeEncodeError:  # half a character, as in names of files that are not UTF-8
            line = _encoder.encode(_worded(row))
    except Exception as error:
        raise OptionError(f"a row of the log cannot be written: {type(error).__name__}: {error}") from error
    return line + b"\n"


def _worded(value: Any) -> Any:
    """The same value, with words in place of numbers that JSON does not have, and valid Unicode."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {_worded(key): _worded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_worded(each) for each in value]
    if getattr(value, "tolist", None) is not None:
        return _worded(value.tolist())
    return value


def decode(line: bytes) -> dict[str, Any]:
    """The row of a line, with the numbers that JSON does not have.

    Raises:
        ValueError: The line is no JSON object.
    """
    try:
        row = _decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"a row is no JSON object: {error}") from error
    if b'"NaN"' in line or b'Infinity"' in line:
        return {name: value if name in _TEXTS else _numbered(value) for name, value in row.items()}
    return row


def _numbered(value: Any) -> Any:
    if isinstance(value, str):
        return _WORDS.get(value, value)
    if isinstance(value, list):
        return [_numbered(each) for each in value]
    if isinstance(value, dict):
        return {key: _numbered(each) for key, each in value.items()}
    return value
