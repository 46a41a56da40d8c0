"""tf.train.Example: a message of Protocol Buffers that maps names to lists of bytes, floats or integers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from shardstream.errors import SourceError


def parse(data: bytes) -> dict[str, Any]:
    """The features of an Example: a value for a list of one, else a list of values.

    Args:
        data: The message.

    Raises:
        SourceError: It is damaged, or another message, such as a SequenceExample.
    """
    found: dict[str, Any] = {}
    for number, features in _fields(data):
        if number != 1 or not isinstance(features, bytes):
            raise SourceError(f"not a tf.train.Example: its message has field {number}")
        for _, entry in _fields(_message(features)):
            pair = dict(_fields(_message(entry)))
            name, feature = _message(pair.get(1, b"")).decode(), _message(pair.get(2, b""))
            found[name] = _values(feature, name)
    return dict(sorted(found.items()))  # maps have no order; TensorFlow writes any


def _values(feature: bytes, name: str) -> Any:
    values: list[Any] = []
    for kind, one_of in _fields(feature):
        for _, value in _fields(_message(one_of)):
            if kind == 1:
                values.append(_message(value))
            elif kind == 2:
                packed = _message(value)
                values += struct.unpack(f"<{len(packed) // 4}f", packed)
            elif kind == 3:
                values += [value] if isinstance(value, int) else _varints(value)
            else:
                raise SourceError(f"feature {name!r} has a list of an unknown kind")
    # Negative integers are stored as 64 bits of two's complement.
    values = [value - (1 << 64) if isinstance(value, int) and value >> 63 else value for value in values]
    return values[0] if len(values) == 1 else values


def _message(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise SourceError("not a tf.train.Example: a number stands where a message is due")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The number and the value of each field of a message: bytes, or an integer of a varint."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if tag & 7 == 2:
            size, at = _varint(data, at)
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
        else:
            raise SourceError(f"not a tf.train.Example: a field of wire type {tag & 7}")
        if at + size > len(data):
            raise SourceError("a tf.train.Example that is cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def _varints(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise SourceError("a tf.train.Example with a number that does not end")
