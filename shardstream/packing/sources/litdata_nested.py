"""Lists and objects as LitData stores them in a column of the format `json`: JSON, or a form of its own.

The form has a byte that says the kind of each value, and little-endian numbers. Records are objects of the
same names, which come once. Source: `_nested_loads` of litdata 0.2.76.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from shardstream.errors import SourceError

__all__ = ["nested"]

_JSON_BEGINS = 0x21  # smaller first bytes are kinds
_DEEPEST = 200  # of lists and objects in one another
_NUMBERS = {2: "q", 3: "d", 4: "?"}  # lists of them, by their kind


def nested(data: bytes) -> Any:
    """The value in the bytes of a column.

    Raises:
        SourceError: They are damaged, or of a kind that is not known.
    """
    try:
        if not data or data[0] >= _JSON_BEGINS:
            return msgspec.json.decode(data)
        reader = _Reader(data)
        value = reader.value(0)
    except (
        struct.error,
        ValueError,
        RecursionError,
    ) as error:  # those of msgspec and Unicode are ValueErrors
        raise SourceError(f"a nested value is damaged ({error})") from error
    if reader.at != len(data):
        raise SourceError(f"a nested value has {len(data) - reader.at} bytes too many")
    return value


class _Reader:
    """Reads values one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def value(self, depth: int) -> Any:
        """The value that begins here."""
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} lists and objects in one another")
        match self._bytes(1)[0]:
            case 0:
                return msgspec.json.decode(self._bytes(self._count()))
            case 1:
                return self._texts()
            case 2 | 3 | 4 as kind:
                return self._numbers(_NUMBERS[kind])
            case 5:
                return {self._text(): self.value(depth + 1) for _ in range(self._count())}
            case 6:
                return self._records()
            case 7 | 8 | 9 | 10 | 11 as kind:
                return self._plain(kind - 7)
            case kind:
                raise ValueError(f"the kind {kind} is not known")

    def _bytes(self, size: int) -> bytes:
        found = self._data[self.at : self.at + size]
        if len(found) < size:
            raise ValueError(f"it ends {size - len(found)} bytes too early")
        self.at += size
        return found

    def _one(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _count(self) -> int:
        return int(self._one("<I"))

    def _text(self) -> str:
        return self._bytes(self._count()).decode()

    def _texts(self) -> list[str]:
        return [self._text() for _ in range(self._count())]

    def _numbers(self, form: str) -> list[Any]:
        count = self._count()
        return list(struct.unpack(f"<{count}{form}", self._bytes(count * struct.calcsize(f"<{form}"))))

    def _records(self) -> list[dict[str, Any]]:
        count, names = self._count(), self._texts()
        if not names:
            raise ValueError("records without a name")
        return [{name: self._cell() for name in names} for _ in range(count)]

    def _cell(self) -> Any:
        kind = self._bytes(1)[0]
        if not 0x10 <= kind <= 0x14:
            raise ValueError(f"the kind {kind} of a value in a record is not known")
        return self._plain((kind - 0x11) % 5)

    def _plain(self, kind: int) -> Any:
        """A text, a whole number, a number, a bool or None: 0 to 4."""
        if kind == 0:
            return self._text()
        return None if kind == 4 else self._one(f"<{'qd?'[kind - 1]}")
