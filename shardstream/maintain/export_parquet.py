"""Samples to Parquet files: a column `__key__`, and one for each field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shardstream.errors import OptionError, require
from shardstream.format.manifest import Manifest
from shardstream.format.names import unescape_key
from shardstream.maintain.columns import KEY, checked, columns

__all__ = ["ParquetFormat"]

_ROW = 8  # bytes that a value takes beside its content, about


class ParquetFormat:
    """Makes Parquet files. Text and JSON are strings, `cls` is int64, tokens are lists, all else is binary.

    Args:
        manifest: The dataset.

    Raises:
        OptionError: A field has the name of the column of keys.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._arrow: Any = require("pyarrow", "arrow")
        self._parquet: Any = require("pyarrow.parquet", "arrow")
        self._columns = columns(manifest)
        if any(column.name == KEY for column in self._columns):
            raise OptionError(f"a field has the name {KEY!r}, which is the column of keys")
        arrow = self._arrow
        types = {
            "bytes": arrow.large_binary(), "text": arrow.large_string(), "json": arrow.large_string(),
            "int": arrow.int64(),
        }  # fmt: skip
        self._schema = arrow.schema(
            [
                arrow.field(KEY, arrow.large_string(), nullable=False),
                *(
                    arrow.field(
                        column.name,
                        arrow.large_list(arrow.type_for_alias(column.dtype))
                        if column.kind == "tokens"
                        else types[column.kind],
                    )
                    for column in self._columns
                ),
            ]
        )

    def name(self, number: int) -> str:
        """The name of a file."""
        return f"shard-{number:06d}.parquet"

    def encode(self, key: str, fields: dict[str, bytes]) -> tuple[str, list[Any]]:
        """A row: the key, and the value of each column. Raises SourceError if a column cannot hold it."""
        values: list[Any] = []
        for column in self._columns:
            data = fields.get(column.name)
            if data is None:
                values.append(None)
                continue
            checked(column, data, key)
            if column.kind in ("text", "json"):
                values.append(data.decode())
            elif column.kind == "int":
                values.append(int(data))
            else:
                values.append(data if column.dtype is None else np.frombuffer(data, column.dtype))
        return unescape_key(key), values

    def size(self, piece: tuple[str, list[Any]]) -> int:
        """The bytes of a row before compression, about."""
        key, values = piece
        return len(key) + sum(_ROW + _length(value) for value in values)

    def join(self, pieces: Sequence[tuple[str, list[Any]]]) -> list[bytes]:
        """A file."""
        arrow = self._arrow
        content = [[key for key, _ in pieces], *zip(*(values for _, values in pieces), strict=True)]
        arrays = [
            arrow.array(list(values), type=field.type)
            for values, field in zip(content, self._schema, strict=True)
        ]
        out = arrow.BufferOutputStream()
        self._parquet.write_table(
            arrow.table(arrays, schema=self._schema), out, compression="zstd", use_dictionary=False
        )
        return [out.getvalue().to_pybytes()]

    def last(self, written: Sequence[tuple[str, int, int]]) -> dict[str, bytes]:
        """No more files."""
        return {}


def _length(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, (str, bytes)) else 0
