"""Sizes such as "64MiB", from text to bytes and back."""

from __future__ import annotations

import re

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _UNITS[_letter] = _UNITS[_letter + "ib"] = 1024**_power
    _UNITS[_letter + "b"] = 1000**_power

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*\Z")


def parse_size(value: str | int, name: str = "size") -> int:
    """The bytes of a size.

    Args:
        value: An int; or text, such as "64MiB" or "1k" in units of 1024, or "200GB" in units of 1000.
        name: The name of the option, for messages.

    Raises:
        OptionError: `value` is no size, or not above 0.
    """
    if not isinstance(value, str):
        try:
            size = whole_number(name, value)
        except OptionError:
            raise OptionError(f"{name}={value!r} is not a size; write for example '64MiB'") from None
    else:
        match = _SIZE.match(value)
        if match is None or match[2].lower() not in _UNITS:
            raise OptionError(f"{name}={value!r} is not a size; write for example '64MiB'")
        size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size <= 0:
        raise OptionError(f"{name}={value!r} must be more than zero")
    return size


def human_size(size: float) -> str:
    """`size` bytes as text for people, in units of 1024: "1.5 MiB"."""
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1), ("GiB", 1), ("TiB", 1)):
        if abs(round(size, digits)) < 1024:  # else 1023.99 would be shown as "1024.0"
            return f"{size:.{digits}f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"
