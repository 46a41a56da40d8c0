"""Rows of a table as samples, many at once: their bytes stay in Arrow's memory, without an object for each.

This is for sources that read with pyarrow, which has loaded numpy already.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from shardstream.errors import SourceError, require
from shardstream.format.columns import ColumnValue
from shardstream.format.headers import BLOCK
from shardstream.format.members import longest_key
from shardstream.format.names import check_field, check_key, escape_key
from shardstream.packing.columns import column_value
from shardstream.packing.sources.arrow_values import values
from shardstream.packing.sources.base import FileSpan, Reject, Sample
from shardstream.packing.sources.block import Block
from shardstream.packing.sources.encoded import to_json
from shardstream.packing.sources.rows import HASHED, KEYS, Rows

if TYPE_CHECKING:
    from shardstream.packing.row_layout import RowLayout
    from shardstream.packing.tally import Tally

__all__ = ["RowBlock", "most_rows", "row_block"]

_MOST = 32 << 20  # bytes of a block
_LAID_OUT = 64 << 20  # bytes of a block in a tar, with the headers of its members
_LARGE = 64 << 10  # bytes of a row, of which the time for an object is no matter
_PLAIN_KEYS = re.compile(r"(?:[A-Za-z0-9_\-]+\n)+\Z")
_encode_lines = msgspec.json.Encoder().encode_lines


@dataclass(frozen=True, eq=False)
class RowBlock(Block):
    """Samples that are rows of a table; see `Block`.

    Args:
        keys, columns, samples: See `Block`.
        fields: Of each field the bytes, an Arrow array of binary without missing values.
    """

    keys: list[str]
    fields: Mapping[str, Any]
    columns: Mapping[str, list[ColumnValue | None]]
    samples: Callable[[], Iterator[Sample | Reject]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.fields)

    def lay_out(self) -> RowLayout:
        from shardstream.packing.row_layout import RowLayout

        return RowLayout(self.keys, self.fields)

    def count(self, tally: Tally) -> None:
        from shardstream.packing.row_layout import joined

        tally.add_joined(*joined(self.keys, self.fields))


def row_block(
    rows: Rows, batch: Any, span: FileSpan, first: int, samples: Callable[[], Iterator[Sample | Reject]]
) -> RowBlock | None:
    """The rows of a record batch as a block; None if a row may be a reject, or has to be looked at alone.

    Args:
        rows: Makes samples of rows.
        batch: A pyarrow RecordBatch, which is valid.
        span: The part of the file that the rows are in.
        first: The number of the first row in its file.
        samples: Gives the samples of these rows one by one.
    """
    table = {name: batch.column(number) for number, name in enumerate(batch.schema.names)}
    if rows.chat is not None or rows.token_dtype is not None or not _is_small(rows, batch):
        return None
    names = [name for name, _ in rows.columns]
    found = [_bytes(table.get(column)) for _, column in rows.columns]
    if None in found or any("*" in name for name in names) or len(set(names)) < len(names):
        return None
    if any(name not in table for name in rows.keep or ()):
        return None  # a part of an object
    fields = dict(zip(names, found, strict=True))
    rest = [name for name in table if name not in rows.used] if rows.keep is None else list(rows.keep)
    columns: dict[str, list[ColumnValue | None]] = {}
    if rest:
        found_values = {name: values(table[name]) for name in rest}
        json = None if "json" in fields else _json(found_values)
        if json is None:
            return None
        fields["json"] = json
        columns = {name: list(map(column_value, found_values[name])) for name in rows.keep or ()}
    try:
        ends = [f".{check_field(name)}".encode() for name in fields]
        keys = _keys(rows, table, span, first, batch.num_rows)
    except SourceError:
        return None
    if not keys or max(map(len, keys)) > longest_key(ends):
        return None
    return RowBlock(keys, fields, columns, samples)


def most_rows(rows: Rows, batch: Any) -> int:
    """How many rows of a record batch one block takes, at least 1: a wide table has many headers."""
    each = batch.nbytes / max(1, batch.num_rows) + _around(rows)
    return max(1, int(_LAID_OUT / each))


def _around(rows: Rows) -> int:
    """The most bytes of the headers of a row, and of the zeros behind its fields and its json."""
    return 2 * BLOCK * (len(rows.columns) + 1)


def _is_small(rows: Rows, batch: Any) -> bool:
    count, size = batch.num_rows, batch.nbytes
    return bool(count and size <= min(_MOST, _LARGE * count) and size + _around(rows) * count <= _LAID_OUT)


def _bytes(column: Any) -> Any | None:
    """A column of text or bytes as an Arrow array of binary; None if it is another, or has missing values."""
    arrow = require("pyarrow", "arrow")
    if column is None or column.null_count:
        return None
    if column.type == arrow.binary():
        return column
    if column.type == arrow.string():
        return column.view(arrow.binary())
    if column.type in (arrow.large_string(), arrow.large_binary()):
        return column.cast(arrow.binary())
    return None


def _json(columns: Mapping[str, list[Any]]) -> Any | None:
    """The values of each row as JSON; None if one has none, as a NoValue has not."""
    arrow = require("pyarrow", "arrow")
    objects = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    try:
        lines = _encode_lines(objects)
        # The encoder writes null for NaN; JSON has no line break.
        found = map(to_json, objects) if b"null" in lines else lines.split(b"\n")[:-1]
        return arrow.array(list(found), arrow.binary())
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None


def _keys(rows: Rows, table: Mapping[str, Any], span: FileSpan, first: int, count: int) -> list[str] | None:
    """The keys of the rows, as `key_of` makes them; None if one of them needs another way.

    Raises:
        SourceError: One is no key.
    """
    named = next((name for name in KEYS if name in table), None) if rows.key is None else rows.key
    if named in (None, "none"):
        keys = [f"{span.key_base}-{number:012d}" for number in range(first, first + count)]
        check_key(keys[0])  # the others differ in the number alone
        return keys if keys[0].isascii() else None
    types = require("pyarrow.types", "arrow")
    column = table.get(str(named))
    if column is None or column.null_count:
        return None
    plain = True  # all are letters, digits, "_" and "-"
    if types.is_integer(column.type):
        keys = list(map(str, column.to_pylist()))
    elif types.is_string(column.type) or types.is_large_string(column.type):
        keys = column.to_pylist()
        text = "\n".join(keys) + "\n"
        plain = _PLAIN_KEYS.match(text) is not None and text.count("\n") == count
        if not plain and "" in keys:
            return None
        keys = keys if plain else list(map(escape_key, keys))
    else:
        return None
    if rows.key is None and span.prefix:
        keys = [span.prefix + key for key in keys]
    for key in keys[:1] if plain else keys:
        check_key(key)
    text = "".join(keys)
    return keys if text.isascii() and HASHED not in text else None
