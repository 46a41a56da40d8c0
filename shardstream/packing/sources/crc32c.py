"""CRC-32C, masked as TFRecord stores it."""

from __future__ import annotations

import importlib
from collections.abc import Callable


def _table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The CRC-32C of bytes, in Python alone: some megabytes a second."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def _fastest() -> Callable[[bytes], int]:
    try:
        found: Callable[[bytes], int] = importlib.import_module("google_crc32c").value
    except ImportError:
        return crc32c
    return found


_fast = _fastest()


def masked(data: bytes) -> int:
    """The CRC-32C of bytes, turned by 15 bits and added to a constant."""
    crc = _fast(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
