"""Whole numbers as options: ints of Python and numpy, and all other values that can be an index."""

from __future__ import annotations

import operator
from typing import Any

from shardstream.errors import OptionError


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int.

    Args:
        name: The name of the option, for messages.
        value: Any value.
        least: The least number that is allowed, or None.
        most: The largest number that is allowed, or None.

    Raises:
        OptionError: `value` is no whole number, or out of bounds. A bool is no whole number.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        bounds = "" if least is None else f", at least {least}"
        if most is not None:
            bounds = f" from {least} to {most}"
        raise OptionError(f"{name}={value!r} must be an int{bounds}")
    return number
