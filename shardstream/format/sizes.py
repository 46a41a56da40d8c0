"""Sizes in human units."""

from __future__ import annotations

import re

from shardstream.errors import OptionError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _UNITS[_letter] = _UNITS[_letter + "ib"] = 1024**_power
    _UNITS[_letter + "b"] = 1000**_power

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*\Z")


def parse_size(value: str | int, name: str = "size") -> int:
    """Bytes in `value`: an int, or text such as "64MiB" (1024-based), "200GB" (1000-based), "1k"."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise OptionError(f"{name}={value!r} is not a size; write for example '64MiB'")
    if isinstance(value, int):
        size = value
    else:
        match = _SIZE.match(value)
        if match is None or match[2].lower() not in _UNITS:
            raise OptionError(f"{name}={value!r} is not a size; write for example '64MiB'")
        size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size <= 0:
        raise OptionError(f"{name}={value!r} must be more than zero")
    return size


def human_size(size: float) -> str:
    """`size` bytes for a person, in 1024-based units: "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"
