"""The columns of values of one shard, read from its index: checked, then given as arrays of any type."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import OptionError
from shardstream.format.columns import ColumnInfo, Dtype, is_exact, text

__all__ = ["StoredColumn", "names_of", "stored_columns"]

Arrays = Mapping[str, NDArray[Any]]
_VALUES: dict[Dtype, str] = {"bool": "u1", "int64": "i8", "float64": "f8", "str": "u1 u2 u4"}
_EMPTY: dict[Dtype, Any] = {"bool": False, "int64": 0, "float64": np.nan, "str": None}


@dataclass(frozen=True, eq=False)
class StoredColumn:
    """The values of one column in one shard of n samples.

    Attributes:
        dtype: The type that they are stored as.
        values: [n], the values; of strings the number of each, from 1 on, or 0 if the sample has none.
        missing: bool [n], whether a sample has no value.
        string_bytes: uint8, all strings in UTF-8, each once.
        string_offset: uint64, where each string begins, then the number of the bytes.
    """

    dtype: Dtype
    values: NDArray[Any]
    missing: NDArray[np.bool_]
    string_bytes: NDArray[np.uint8]
    string_offset: NDArray[np.uint64]

    @cached_property
    def strings(self) -> NDArray[np.object_]:
        """The strings by their numbers, None as number 0: object [D + 1]."""
        data, bounds = self.string_bytes.tobytes(), self.string_offset.tolist()
        found = np.full(len(bounds), None, np.object_)
        found[1:] = [data[a:b].decode() for a, b in itertools.pairwise(bounds)]
        return found

    def as_type(self, dtype: Dtype, where: str) -> NDArray[Any]:
        """The values as another type, [n]. Missing values are False, 0, NaN or None.

        Args:
            dtype: The type that holds the values of all shards.
            where: The name of the column, for messages.

        Raises:
            OptionError: A whole number is too large for float64.
        """
        if dtype == self.dtype:
            found = self.strings[self.values] if dtype == "str" else self.values.astype(_numpy(dtype))
        elif dtype == "float64":
            found = as_float(self.values, where)
        else:
            plain = self.values.astype(_numpy(self.dtype)).tolist()
            found = np.empty(len(plain), np.object_)
            found[:] = [text(value) for value in plain]
        found[self.missing] = _EMPTY[dtype]
        return found


def _numpy(dtype: Dtype) -> Any:
    return {"bool": np.bool_, "int64": np.int64, "float64": np.float64, "str": np.object_}[dtype]


def nothing(dtype: Dtype, samples: int) -> NDArray[Any]:
    """The values of a column that a shard lacks, [samples]: False, 0, NaN or None."""
    return np.full(samples, _EMPTY[dtype], _numpy(dtype))


def as_float(values: NDArray[Any], where: str) -> NDArray[np.float64]:
    """Whole numbers as float64. Raises OptionError if one would become another number."""
    if len(values) and not (is_exact(int(values.min())) and is_exact(int(values.max()))):
        raise OptionError(
            f"column {where!r} has whole numbers above 2**53 beside missing values or fractions, so that "
            f"float64 cannot hold it; use c.column({where!r}), which gives whole numbers and what is missing"
        )
    return values.astype(np.float64)


def names_of(columns: Sequence[ColumnInfo]) -> set[str]:
    """The names of the arrays that hold these columns in an index file."""
    found = set()
    for column in columns:
        found.add(f"column.{column.name}")
        if column.dtype == "str":
            found |= {f"string_bytes.{column.name}", f"string_offset.{column.name}"}
        elif column.missing:
            found.add(f"missing.{column.name}")
    return found


def stored_columns(
    arrays: Arrays, columns: Sequence[ColumnInfo], samples: int, fail: Callable[[str], Exception]
) -> dict[str, StoredColumn]:
    """The columns of a shard, by name.

    Args:
        arrays: The arrays of its index file, by name. All of `names_of` are there.
        columns: The columns, as the manifest lists them.
        samples: How many samples the shard has.
        fail: From what is wrong to the error to raise.
    """
    found = {}
    for info in columns:
        column, problem = _column(arrays, info, samples)
        if problem:
            raise fail(f"column {info.name!r}: {problem}")
        found[info.name] = column
    return found


def _column(arrays: Arrays, info: ColumnInfo, samples: int) -> tuple[StoredColumn, str | None]:
    values = arrays[f"column.{info.name}"]
    none = np.zeros(samples, np.bool_)
    data, bounds, problem = np.empty(0, np.uint8), np.zeros(1, np.uint64), None
    if values.shape != (samples,) or values.dtype.str[1:] not in _VALUES[info.dtype].split():
        return StoredColumn(info.dtype, values, none, data, bounds), (
            f"its array is {values.dtype} {values.shape}, which is not {info.dtype} of {samples} samples"
        )
    if info.dtype == "str":
        none, (data, bounds) = (
            values == 0,
            (arrays[f"{n}.{info.name}"] for n in ("string_bytes", "string_offset")),
        )
        problem = _strings_problem(values, data, bounds)
    elif info.missing:
        flags = arrays[f"missing.{info.name}"]
        if flags.dtype != np.uint8 or flags.shape != (samples,) or (flags > 1).any():
            problem = "its missing values are not marked by 0 and 1 for each sample"
        else:
            none = flags == 1
    if info.dtype == "bool" and (values > 1).any():
        problem = "a bool is neither 0 nor 1"
    if not problem and int(none.sum()) != info.missing:
        problem = f"{int(none.sum())} samples lack it, the manifest says {info.missing}"
    return StoredColumn(info.dtype, values, none, data, bounds), problem


def _strings_problem(values: NDArray[Any], data: NDArray[Any], bounds: NDArray[Any]) -> str | None:
    if data.dtype != np.uint8 or bounds.dtype != np.uint64 or data.ndim != 1 or bounds.ndim != 1:
        return "its strings are not bytes and their bounds"
    steps = bounds[1:] < bounds[:-1]
    if not len(bounds) or steps.any() or int(bounds[0]) or int(bounds[-1]) != len(data):
        return "the bounds of its strings do not rise from 0 to the end of their bytes"
    if int(values.max(initial=0)) >= len(bounds):
        return "a sample has a string that there is not"
    try:
        data.tobytes().decode()
    except UnicodeDecodeError:
        return "its strings are not UTF-8"
    begins = bounds[bounds < len(data)].astype(np.int64)
    return "a string begins inside a character" if (data[begins] & 0xC0 == 0x80).any() else None
