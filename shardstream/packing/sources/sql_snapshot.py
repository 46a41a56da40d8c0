"""What the keys of a query are when a pack is planned, so that a table that changes meanwhile is noticed."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from shardstream.errors import SourceError
from shardstream.format.names import shorten
from shardstream.packing.sources.encoded import to_json
from shardstream.packing.sources.rows import Kind
from shardstream.packing.sources.sql_database import Database, Key

__all__ = ["Cell", "KeyCount", "Snapshot", "kind_of", "take_snapshot"]

_CELLS = 1 << 16  # ranges of keys that are remembered at most
_KEYS = 1 << 14  # keys in memory at a time
_SPOTS, _LOOKS = 16, 64  # places at which the sizes of rows are looked at, and rows at each
_MASK = (1 << 64) - 1


class Cell(NamedTuple):
    """Keys that follow each other.

    Args:
        begin: The first key.
        rows: How many rows there are.
        digest: The sum of the digests of their keys modulo 2**64.
    """

    begin: Key
    rows: int
    digest: int


@dataclass(frozen=True)
class Snapshot:
    """What was there when the pack was planned.

    Args:
        rows: How many rows have a key.
        nulls: How many have NULL for one.
        first, last: The least key and the greatest, as text.
        digest: The sum of the digests of the keys modulo 2**64.
        row_bytes: The bytes of the values of a row, about.
        kinds: The name and kind of each column.
    """

    rows: int
    nulls: int
    first: str
    last: str
    digest: int
    row_bytes: int
    kinds: tuple[tuple[str, Kind], ...]

    def record(self) -> dict[str, Any]:
        """What identifies it, for the provenance."""
        ends = {"first": shorten(self.first), "last": shorten(self.last)} if self.rows else {}
        return {"rows": self.rows, "nulls": self.nulls, **ends, "keys_digest": f"{self.digest:016x}"}


class KeyCount:
    """Counts keys: how many, and the sum of their digests.

    Args:
        kind: The type of the keys before; None if there are none.
    """

    def __init__(self, kind: type | None = None) -> None:
        self.rows = self.digest = 0
        self.kind = kind

    def add(self, key: Any, where: str) -> None:
        """Count one.

        Raises:
            SourceError: It is neither text nor a whole number, or of another type than those before.
        """
        if type(key) is not self.kind:
            self._check(key, where)
        if type(key) is str:
            digest = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))
        else:
            digest = xxhash.xxh3_64_intdigest(str(key).encode(), 1)
        self.rows += 1
        self.digest = (self.digest + digest) & _MASK

    def _check(self, key: Any, where: str) -> None:
        cast = "cast it in the query, as in CAST(k AS VARCHAR) AS k"
        name = type(key).__name__
        if type(key) not in (str, int) and not isinstance(key, uuid.UUID):
            raise SourceError(
                f"{where}: the key {shorten(repr(key))} is a {name}; a key is text, a whole number or a "
                f"UUID: {cast}"
            )
        if self.kind is not None:
            # '5' and 5 are two values, and name one sample.
            raise SourceError(
                f"{where}: the key {shorten(repr(key))} is a {name}, and others are a {self.kind.__name__}; "
                f"keys are of one type: {cast}"
            )
        self.kind = type(key)


def _cells(parts: Iterable[Sequence[Sequence[Any]]], where: str) -> tuple[list[Cell], Key | None]:
    """At most `_CELLS` ranges of the keys, and the last key. Equal keys are in one range."""
    cells: list[Cell] = []
    step, count = 1, KeyCount()
    begin: Any = None
    last: Any = None
    for part in parts:
        for (key,) in part:
            if count.rows >= step and key != last:
                cells.append(Cell(begin, count.rows, count.digest))
                count = KeyCount(count.kind)
                if len(cells) == _CELLS:
                    cells = [_joined(*pair) for pair in zip(cells[::2], cells[1::2], strict=True)]
                    step *= 2
            if not count.rows:
                begin = key
            count.add(key, where)
            last = key
    if count.rows:
        cells.append(Cell(begin, count.rows, count.digest))
    return cells, last


def _joined(left: Cell, right: Cell) -> Cell:
    return Cell(left.begin, left.rows + right.rows, (left.digest + right.digest) & _MASK)


def take_snapshot(database: Database, where: str) -> tuple[Snapshot, tuple[Cell, ...]]:
    """Read all keys, and some rows. The memory does not grow with the table.

    Args:
        database: The query.
        where: The database, for messages.

    Returns:
        The snapshot, and ranges of keys for the tasks.
    """
    nulls = database.nulls()
    cells, last = _cells(database.keys(_KEYS), where)
    seen: list[Sequence[Any]] = []
    for number in sorted({len(cells) * spot // _SPOTS for spot in range(_SPOTS)} if cells else ()):
        end = cells[number + 1].begin if number + 1 < len(cells) else None
        found = database.rows(database.columns, cells[number].begin, end, _LOOKS)
        seen += next(found, ())[:_LOOKS]
        found.close()  # type: ignore[attr-defined]
    sizes = sum(_size(value) for row in seen for value in row)
    return Snapshot(
        rows=sum(cell.rows for cell in cells),
        nulls=nulls,
        first=str(cells[0].begin) if cells else "",
        last=str(last) if cells else "",
        digest=sum(cell.digest for cell in cells) & _MASK,
        row_bytes=max(1, sizes // max(1, len(seen))),
        kinds=tuple(
            (name, _kind(database, name, [row[at] for row in seen]))
            for at, name in enumerate(database.columns)
        ),
    ), tuple(cells)


def _kind(database: Database, name: str, values: Sequence[Any]) -> Kind:
    """What a column can become, by what most of these values are: those of SQLite may be of several types."""
    kinds = Counter(kind_of(value) for value in values if value is not None)
    return kinds.most_common(1)[0][0] if kinds else kind_of(database.first(name))


def kind_of(value: Any) -> Kind:
    """What a column with this value can become."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        value = value.get("bytes")
    return "bytes" if isinstance(value, (bytes, bytearray, memoryview)) else "other"


def _size(value: Any) -> int:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return len(value)
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (dict, list, tuple)):
        try:
            return len(to_json(value))
        except (TypeError, ValueError, OverflowError, RecursionError):
            return 64
    return 0 if value is None else 8
