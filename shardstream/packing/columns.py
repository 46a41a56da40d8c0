"""Which values of a row become columns of the index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from shardstream.errors import OptionError, SourceError
from shardstream.format.columns import MAX_STRING, ColumnValue
from shardstream.format.manifest import Manifest
from shardstream.format.names import shorten

__all__ = [
    "check_columns",
    "check_known",
    "check_scalars",
    "check_values",
    "column_value",
    "columns_of",
    "columns_of_sample",
]

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_KEPT = (
    f"a number, a bool or a string of at most {MAX_STRING} bytes, and a dataset of tokens keeps nothing else"
)


def column_value(value: Any) -> ColumnValue | None:
    """A value as the index holds it; None if it cannot.

    The index holds bools, whole numbers of 64 bits, floats, and strings of at most 256 bytes in UTF-8.
    Scalars of numpy count as what their `item` is.
    """
    if not isinstance(value, (bool, int, float, str)) and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return int(value) if _LEAST <= value <= _MOST else None
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str) and len(value) <= MAX_STRING:
        try:
            return str(value) if len(value.encode()) <= MAX_STRING else None
        except UnicodeEncodeError:  # half of a surrogate pair
            return None
    return None


def columns_of(row: Mapping[str, Any], keep: Iterable[str] | None) -> dict[str, ColumnValue]:
    """The values of a row that the index keeps, by name. Values that it cannot hold are left out.

    Args:
        row: The values of the row by name.
        keep: The names that were asked for. "a.b" is `b` of the object in `a`, unless the row has "a.b"
            itself. None: nothing was asked for, so that there are no columns.
    """
    found: dict[str, ColumnValue] = {}
    for name in keep or ():
        value: Any = row.get(name)
        if value is None and "." in name and name not in row:
            value = row
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        kept = column_value(value)
        if kept is not None:
            found[name] = kept
    return found


def columns_of_sample(
    sample: Mapping[str, Any], keep: Sequence[str]
) -> tuple[dict[str, ColumnValue], tuple[str, ...]]:
    """The values of a sample of Python that the index keeps, by name; and the names that it does not have.

    Args:
        sample: The values of its fields by name.
        keep: The names. Each is a value of the sample, or of the object in its field json; "a.b" is also `b`
            of the object in `a`. The field json may be an object, or the text of one.
    """
    found: dict[str, ColumnValue] = {}
    missing: list[str] = []
    inside: Mapping[str, Any] | None = None  # the object in field json, once it is asked for
    for name in keep:
        value = _lookup(sample, name)
        if value is _MISSING and "json" in sample:
            if inside is None:
                inside = _object(sample["json"])
            value = _lookup(inside, name)
            if value is _MISSING and name.startswith("json."):
                value = _lookup(inside, name[5:])
        if value is _MISSING:
            missing.append(name)
        elif (kept := column_value(value)) is not None:
            found[name] = kept
    return found, tuple(missing)


_MISSING = object()


def _object(value: Any) -> Mapping[str, Any]:
    """The object that the value of a field json is, or is the text of; empty if it is none."""
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError):  # bytes are stored as they are
            return {}
    return value if isinstance(value, Mapping) else {}


def _lookup(values: Mapping[str, Any], name: str) -> Any:
    if name in values:
        return values[name]
    at = name.find(".")
    while at >= 0:  # a dot may be a part of the name of a field
        inside = values.get(name[:at])
        if isinstance(inside, Mapping) and (value := _lookup(inside, name[at + 1 :])) is not _MISSING:
            return value
        at = name.find(".", at + 1)
    return _MISSING


def check_known(unknown: Iterable[Sequence[str] | None]) -> None:
    """Raise OptionError if `keep` has names that no row has.

    Args:
        unknown: For each part of the input the names that no row of it has. None: it has no rows.
    """
    found = [names for names in unknown if names is not None]
    lost = [name for name in found[0] if all(name in names for names in found)] if found else []
    if lost:
        raise OptionError(
            f"keep: no row has {' or '.join(map(repr, lost))}; nothing was committed. "
            "Check the names; a nested one is written 'a.b'"
        )


def check_values(columns: Mapping[str, ColumnValue]) -> None:
    """Raise SourceError if a source gives a value that the index cannot hold."""
    for name, value in columns.items():
        if type(value) not in (bool, int, float, str) or column_value(value) is None:
            raise SourceError(
                f"column {name!r}: {shorten(repr(value))} is no bool, int of 64 bits, float, or string of at "
                f"most {MAX_STRING} bytes; a source leaves it out, as column_value tells it"
            )


def check_columns(manifest: Manifest, keep: Iterable[str] | None) -> None:
    """Raise SourceError if a dataset of tokens has lost what `keep` named: it has no other place for it.

    Args:
        manifest: Of the dataset, not written yet.
        keep: The names that were asked for, or None.
    """
    known = {column.name for column in manifest.columns}
    lost = [name for name in keep or () if name not in known]
    if manifest.kind == "tokens" and lost:
        raise SourceError(
            f"keep={lost[0]!r}: no document has a value of that name which is {_KEPT}; {_advice(lost[0])}"
        )


def check_scalars(sample: Mapping[str, Any], keep: Iterable[str]) -> None:
    """Raise SourceError if `keep` names a list, an array or an object of a document of tokens.

    It is for the first sample, so that a wrong name is not found only at the commit.
    """
    for name in keep:
        value = _lookup(sample, name)
        if isinstance(value, (Mapping, list, tuple)) or getattr(value, "shape", ()) != ():
            raise SourceError(
                f"keep={name!r}: its value is a {type(value).__qualname__}, and not {_KEPT}; {_advice(name)}"
            )


def _advice(name: str) -> str:
    return f"leave it out, or name a value inside an object: {name}.NAME"
