"""Columns: what the index says of the samples of one shard, as arrays for predicates."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import OptionError
from shardstream.format.column_arrays import StoredColumn, as_float, nothing
from shardstream.format.columns import ColumnInfo
from shardstream.read.reader import DatasetReader

__all__ = ["Columns"]

Ints = NDArray[np.int64]
_ITEMSIZE = {"uint16": 2, "uint32": 4}


class _Fields(dict[str, Any]):
    """A column for each field."""

    def __missing__(self, name: object) -> Any:
        raise OptionError(f"where asks for the field {name!r}; the dataset has {sorted(self)}")


class Columns:
    """What the index says of the n samples of one shard, as arrays [n]. Documents of tokens are samples, too.

    `c["lang"]` is the column "lang", which was packed with `keep`. Its dtype is the same for all shards:
    int64, float64, bool, or object for str. A missing value is NaN or None. So a column of whole numbers with
    missing values is float64, and a column of bools with missing values is object: compare it, as in
    `c["ok"] == True`. No comparison with == holds for a missing value.

    Attributes:
        shard: The number of the shard.
    """

    def __init__(self, reader: DatasetReader, shard: int, first: int, asked: set[str]) -> None:
        self.shard, self._reader, self._asked = shard, reader, asked
        manifest = reader.manifest
        self._first, self._fields = first, manifest.fields
        self._infos = {info.name: info for info in manifest.columns}
        self._values: dict[str, StoredColumn] | None = None
        if asked:
            self._index, self._values = reader.read_columns(shard)
        else:
            self._index = reader.read_index(shard)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The values of a column, [n].

        Raises:
            OptionError: There is no such column; or it has missing values and whole numbers beyond 2**53.
        """
        info, (values, missing) = self._info(name), self.column(name)
        if not info.missing or info.dtype in ("float64", "str"):
            return values
        if info.dtype == "int64":
            values = as_float(values, name)
            values[missing] = np.nan
            return values
        found = values.astype(np.object_)
        found[missing] = None
        return found

    def column(self, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The values of a column in its own dtype, [n], and which are missing, bool [n].

        A missing value is 0, False, NaN or None.

        Raises:
            OptionError: There is no such column.
        """
        info, stored = self._info(name), self._stored(name)
        if stored is None:
            count = self._index.samples
            return nothing(info.dtype, count), np.ones(count, np.bool_)
        return stored.as_type(info.dtype, name), stored.missing.copy()

    def _info(self, name: str) -> ColumnInfo:
        info = self._infos.get(name)
        if info is None:
            names = sorted(self._infos)
            has = f"the dataset has {names}" if names else "the dataset has none; pack it with keep="
            raise OptionError(f"where asks for the column {name!r}; {has}")
        return info

    def _stored(self, name: str) -> StoredColumn | None:
        if self._values is None:
            self._asked.add(name)
            _, self._values = self._reader.read_columns(self.shard)
        return self._values.get(name)

    @cached_property
    def number(self) -> Ints:
        """The numbers of the samples in the dataset, int64 [n]."""
        return np.arange(self._first, self._first + self._index.samples, dtype=np.int64)

    @cached_property
    def key(self) -> NDArray[np.str_]:
        """The keys, str [n]."""
        return np.array(self._index.keys_list(0, self._index.samples), np.str_)

    @cached_property
    def size(self) -> Mapping[str, Ints]:
        """By field its bytes in each sample, int64 [n]; -1 if a sample lacks it."""
        sizes = np.asarray(self._index.field_size).astype(np.int64)
        return _Fields({field.name: sizes[:, column] for column, field in enumerate(self._fields)})

    @cached_property
    def has(self) -> Mapping[str, NDArray[np.bool_]]:
        """By field whether each sample has it, bool [n]."""
        return _Fields({name: sizes >= 0 for name, sizes in self.size.items()})

    @cached_property
    def tokens(self) -> Ints:
        """The tokens of each sample of a token dataset, int64 [n]; else 0."""
        found = np.zeros(self._index.samples, np.int64)
        for field in self._fields:
            if field.dtype is not None:
                found += np.maximum(self.size[field.name], 0) // _ITEMSIZE[field.dtype]
        return found
