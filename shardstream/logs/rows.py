"""Rows: from a dict of Python, numpy and torch values to one line of JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["MARK", "decode", "encode", "text"]

# A field of the rows that the log itself writes: it says what is missing. Its value is "dropped" or "cut".
MARK = "shardstream"

# JSON has no such numbers. These are the words that JSON has for them in protobuf, and that the casts of
# Python, pandas and SQL take: https://protobuf.dev/programming-guides/json/
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# The fields of a logging record that are text, whatever they say.
_TEXTS = frozenset({"level", "logger", "message", "exc_info", "stack_info"})


def _plain(value: Any) -> Any:
    """What a value of another type is written as. It raises nothing: one odd value must not cost the row."""
    try:
        for kind in (bool, int, float):
            if isinstance(value, kind):
                return kind(value)  # subclasses, as numpy.float64 is one
        if not isinstance(value, type) and hasattr(value, "tolist"):  # scalars and arrays of numpy and torch
            found = value.tolist()
            # numpy.longdouble makes itself of itself.
            return float(value) if type(found) is type(value) else found
    except Exception:  # noqa: BLE001, S110 - a tensor without data, as a sparse or meta one is: its text
        pass
    return text(value)


def text(value: Any) -> str:
    """A text for any value."""
    for write in (str, repr):
        try:
            return _valid(write(value))
        except Exception:  # noqa: BLE001, S112 - it is the user's code
            continue
    return f"<{type(value).__name__}>"


def _valid(value: str) -> str:
    """The text without halves of characters, as names of files that are not UTF-8 have them."""
    return value.encode("utf-8", "backslashreplace").decode()


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_decoder = msgspec.json.Decoder(dict[str, Any])


def encode(row: Mapping[str, Any]) -> bytes:
    """A row as one line, with its end.

    Numbers that JSON does not have become the words "NaN", "Infinity" and "-Infinity". Scalars and arrays of
    numpy and torch become numbers and lists, sets become lists, dataclasses become dicts, bytes become
    base64, and times become text of ISO 8601. Any other value becomes the text that `str` makes of it, as
    does a value that cannot be written, such as a list that contains itself. No value raises an error.
    """
    try:
        line = _encoder.encode_lines((row,))
        if b"null" not in line:  # None, or a number that JSON does not have
            return line
    except Exception:  # noqa: BLE001, S110 - such as half a character, or a key that JSON does not have
        pass
    try:
        return _encoder.encode_lines((_worded(row),))
    except Exception:  # noqa: BLE001 - a value contains itself
        return _encoder.encode_lines(({_key(name): _writable(value) for name, value in row.items()},))


def _writable(value: Any) -> Any:
    try:
        found = _worded(value)
        _encoder.encode(found)
    except Exception:  # noqa: BLE001 - it is said by its text
        return text(value)
    return found


def _worded(value: Any) -> Any:
    """The same value, with words in place of numbers that JSON does not have, and valid Unicode."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _valid(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {_key(key): _worded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_worded(each) for each in value]
    try:
        found = msgspec.to_builtins(value, enc_hook=_plain)  # dataclasses, enums, times, bytes
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - a field or a key that msgspec does not write
        return text(value)
    return _worded(found)


def _key(key: Any) -> str | int | float:
    """What a key of a dict is written as."""
    found = _worded(key)
    if isinstance(found, (str, int, float)) and not isinstance(found, bool):
        return found
    return text(key)


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
