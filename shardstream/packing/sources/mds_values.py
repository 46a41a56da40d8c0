"""The values of a sample of MDS, by the encodings of its columns."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from shardstream.errors import SourceError
from shardstream.packing.sources.leaves import npy, png_of_pil
from shardstream.packing.sources.rows import Kind, Rows

_NUMBERS = {
    "int": "<q", "uint8": "<B", "uint16": "<H", "uint32": "<I", "uint64": "<Q", "int8": "<b", "int16": "<h",
    "int32": "<i", "int64": "<q", "float16": "<e", "float32": "<f", "float64": "<d",
}  # fmt: skip
_ARRAYS = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
    64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip
_TEXTS = ("str", "str_int", "str_float", "str_decimal")
_BYTES = ("bytes", "jpeg", "png", "pil")


class Config(msgspec.Struct):
    """What stands in each shard."""

    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]


def check(names: Sequence[str], encodings: Sequence[str], rows: Rows, where: str) -> None:
    """Raise SourceError for an encoding that is not known, or that is refused, in a column that is read."""
    for name, encoding in zip(names, encodings, strict=False):
        if _is_known(encoding) or not rows.reads(name):
            continue
        what = f"has the encoding {encoding!r}, which is not known"
        if encoding == "pkl":
            what = "holds pickles, which may run any code; none is read"
        plain = [name for name, kind in zip(names, encodings, strict=False) if _is_plain(kind)]
        raise SourceError(f"{where}: column {name!r} {what}. {without(plain)}")


def without(others: Sequence[str]) -> str:
    """What to do about a column that cannot be read.

    Args:
        others: The columns beside it that field json can hold.
    """
    such = f", such as --keep {','.join(others)}" if others else ""
    return f"To leave it out, say with --keep which columns field json is to have{such}"


def _is_plain(encoding: str) -> bool:
    return encoding in {*_NUMBERS, "json", *_TEXTS[1:]}


def _is_known(encoding: str) -> bool:
    base, _, more = encoding.partition(":")
    if base == "ndarray":
        dtype, _, shape = more.partition(":")
        known = not dtype or dtype in _ARRAYS.values()
        return known and (not shape or all(part.isdecimal() for part in shape.split(",")))
    return not more and base in {*_TEXTS, *_BYTES, *_NUMBERS, "json"}


def kinds(config: Config) -> dict[str, Kind]:
    """What each column can become."""
    found: dict[str, Kind] = {}
    for name, encoding in zip(config.column_names, config.column_encodings, strict=True):
        media = encoding in _BYTES or (encoding.startswith("ndarray") and _is_known(encoding))
        found[name] = "bytes" if media else "text" if encoding == "str" else "other"
    return found


def read_row(data: bytes, config: Config) -> dict[str, Any]:
    """The values of a sample: sizes of the columns that have no fixed one, and then all columns."""
    moving = config.column_sizes.count(None) + config.column_sizes.count(0)
    sizes = iter(struct.unpack_from(f"<{moving}I", data))
    at = 4 * moving
    row: dict[str, Any] = {}
    for name, encoding, fixed in zip(
        config.column_names, config.column_encodings, config.column_sizes, strict=True
    ):
        size = fixed or next(sizes)
        if at + size > len(data):
            raise SourceError(f"column {name!r} ends behind the sample")
        row[name] = _value(encoding, data[at : at + size])
        at += size
    if at != len(data):
        raise SourceError(f"its columns are {at} bytes, and the sample {len(data)}")
    return row


def _value(encoding: str, data: bytes) -> Any:
    base, _, more = encoding.partition(":")
    if not _is_known(encoding):
        return None  # `check` has seen that nobody reads it
    if base in _NUMBERS:
        return struct.unpack(_NUMBERS[base], data)[0]
    if base == "str_int":
        return int(data)
    if base == "str_float":
        return float(data)
    if base in _TEXTS:
        return data.decode()
    if base == "json":
        return msgspec.json.decode(data)
    if base == "pil":
        return png_of_pil(data)
    if base == "ndarray":
        return _array(data, *more.split(":"))
    return data


def _array(data: bytes, dtype: str = "", shape: str = "") -> bytes:
    """A .npy file of an array; its dtype and shape stand before the values, unless the encoding has them."""
    at = 0
    if not dtype:
        found = _ARRAYS.get(data[0] if data else -1)
        if found is None:
            raise SourceError("an array without a known dtype")
        dtype, at = found, 1
    if shape:
        return npy(dtype, [int(part) for part in shape.split(",")], data[at:])
    if len(data) <= at:
        raise SourceError("an array without a shape")
    axes, width = data[at] >> 2, data[at] % 4
    lengths = struct.unpack_from(f"<{axes}{'BHIQ'[width]}", data, at + 1)
    return npy(dtype, lengths, data[at + 1 + axes * (1 << width) :])
