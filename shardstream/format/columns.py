"""Columns: small values of samples that the index holds, so that samples are chosen without reading them.

A value is a bool, an int of 64 bits, a float, or a string of at most 256 bytes in UTF-8. Without numpy, which
would take most of a worker's start.
"""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

__all__ = [
    "MAX_STRING",
    "NO_COLUMNS",
    "ColumnInfo",
    "ColumnValue",
    "Dtype",
    "Tensor",
    "encode",
    "is_exact",
    "merge",
    "text",
]

ColumnValue = bool | int | float | str
NO_COLUMNS: Mapping[str, ColumnValue] = MappingProxyType({})
Dtype = Literal["bool", "int64", "float64", "str"]
MAX_STRING = 256  # bytes
_EXACT = 1 << 53  # up to here each int is a float64
_TYPES: dict[type, Dtype] = {bool: "bool", int: "int64", float: "float64", str: "str"}
_CODES = (("U8", "B", 1 << 8), ("U16", "H", 1 << 16), ("U32", "I", 1 << 32))


class ColumnInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A column of a shard, or of a whole dataset.

    Args:
        name: The name of the column, as `keep` gave it.
        dtype: The type of the values.
        missing: How many samples have no value.
    """

    name: str
    dtype: Dtype
    missing: int = 0


class Tensor(NamedTuple):
    """An array of an index file: its name, its dtype as safetensors names it, its length and its bytes."""

    name: str
    dtype: str
    length: int
    data: bytes


def common(dtypes: Iterable[Dtype]) -> Dtype:
    """The type that holds values of several types: int64 and float64 become float64, all others str."""
    found = set(dtypes)
    if len(found) == 1:
        return found.pop()
    return "float64" if found == {"int64", "float64"} else "str"


def merge(shards: Iterable[tuple[int, Sequence[ColumnInfo]]]) -> tuple[ColumnInfo, ...]:
    """The columns of a dataset, in the order in which they first appear.

    Args:
        shards: For each shard its number of samples and its columns. The samples of a shard that lacks a
            column have no value.
    """
    dtypes: dict[str, set[Dtype]] = {}
    present: dict[str, int] = {}
    total = 0
    for samples, columns in shards:
        total += samples
        for column in columns:
            dtypes.setdefault(column.name, set()).add(column.dtype)
            present[column.name] = present.get(column.name, 0) + samples - column.missing
    # From a list: msgspec leaves out a default only if it is the very same object, and before Python 3.11 the
    # empty tuple of a generator is another one than `()`. The fingerprint would not be that of the file.
    return tuple([ColumnInfo(name, common(kinds), total - present[name]) for name, kinds in dtypes.items()])


def is_exact(number: int) -> bool:
    """Whether float64 has this int."""
    return -_EXACT <= number <= _EXACT


def text(value: ColumnValue) -> str:
    """A value as a string, for a column of strings: a number or a bool as JSON writes it, 2.0 as 2."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and is_exact(int(value)):
        value = int(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return msgspec.json.encode(value).decode()


def encode(columns: Mapping[str, Sequence[ColumnValue | None]]) -> tuple[list[ColumnInfo], list[Tensor]]:
    """The columns of a shard, and the arrays that hold them, both in the order in which they are given.

    Args:
        columns: By name a value for each sample; None if it has none. A column without any value is left out.
    """
    assert sys.byteorder == "little", "shardstream needs a little-endian machine"
    infos: list[ColumnInfo] = []
    tensors: list[Tensor] = []
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if not kinds:
            continue
        dtype = common(_TYPES[kind] for kind in kinds)
        if dtype == "float64" and not all(is_exact(value) for value in values if isinstance(value, int)):
            dtype = "str"  # a float would be another number
        infos.append(ColumnInfo(name, dtype, sum(value is None for value in values)))
        tensors += _strings(name, values) if dtype == "str" else _numbers(name, values, dtype)
    return infos, tensors


def _numbers(name: str, values: Sequence[ColumnValue | None], dtype: Dtype) -> Iterator[Tensor]:
    kind, code = {"bool": ("U8", "B"), "int64": ("I64", "q"), "float64": ("F64", "d")}[dtype]
    numbers: array[Any] = array(code, [0 if value is None else value for value in values])
    yield Tensor(f"column.{name}", kind, len(values), numbers.tobytes())
    if None in values:
        yield Tensor(f"missing.{name}", "U8", len(values), bytes(value is None for value in values))


def _strings(name: str, values: Sequence[ColumnValue | None]) -> Iterator[Tensor]:
    """Each string once, and for each sample its number, from 1 on; 0 if the sample has no value."""
    numbers: dict[str, int] = {}
    codes = [
        0 if value is None else numbers.setdefault(text(value), len(numbers) + 1) for value in values
    ]  # fmt: skip
    kind, code, _ = next(known for known in _CODES if len(numbers) < known[2])
    encoded = [string.encode() for string in numbers]
    bounds = array("Q", itertools.accumulate(map(len, encoded), initial=0))
    data = b"".join(encoded)
    yield Tensor(f"column.{name}", kind, len(values), array(code, codes).tobytes())
    yield Tensor(f"string_offset.{name}", "U64", len(bounds), bounds.tobytes())
    yield Tensor(f"string_bytes.{name}", "U8", len(data), data)
