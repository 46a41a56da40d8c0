"""The values of Arrow columns as Python has them. How a value is told depends on its type alone.

Python has no times of nanoseconds. pyarrow makes objects of pandas of them where pandas is installed, and an
error where it is not. Here they are always texts.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from shardstream.errors import require

__all__ = ["NoValue", "values"]

_Form = Callable[[Any], Any]
_ERRORS = (ValueError, OverflowError, LookupError, NotImplementedError)  # those of pyarrow are among them
_SECOND = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class NoValue:
    """Stands for a value that Python cannot hold, such as a date of the year 20000. `reason` says why."""

    def __init__(self, error: Exception) -> None:
        self.reason = str(error)


def values(column: Any) -> list[Any]:
    """The values of a column of Arrow, an array; NoValue for those that Python cannot hold.

    Those of nanoseconds are texts, also inside of lists and objects: a time is
    "2020-01-01T00:00:00.123456789", with "Z" behind it and in UTC if its type has a zone; a time of day is
    "00:00:00.123456789", and a duration "PT1.123456789S".
    """
    arrow = require("pyarrow", "arrow")
    if arrow.types.is_dictionary(column.type) and _plain(column.type.value_type)[1] is not None:
        column = column.dictionary_decode()
    type_, form = _plain(column.type)
    if form is not None:
        try:
            column = _cast(column, type_)
        except (ValueError, NotImplementedError, TypeError) as error:
            return [NoValue(error) if there else None for there in column.is_valid().to_pylist()]
    try:
        found: list[Any] = column.to_pylist()
    except _ERRORS:
        found = list(map(_one, column))
    return found if form is None else [value if _is_none(value) else form(value) for value in found]


def _cast(column: Any, type_: Any) -> Any:
    try:
        return column.cast(type_)
    except (ValueError, NotImplementedError, TypeError):  # list views; `view` is wrong for columns of null
        return column.view(type_)


def _one(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except _ERRORS as error:
        return NoValue(error)


def _is_none(value: Any) -> bool:
    return value is None or isinstance(value, NoValue)


def _plain(type_: Any) -> tuple[Any, _Form | None]:
    """A type with whole numbers instead of nanoseconds, and what makes texts of these, if any."""
    arrow, types = require("pyarrow", "arrow"), require("pyarrow.types", "arrow")
    if types.is_timestamp(type_) and type_.unit == "ns":
        return arrow.int64(), _time if type_.tz is None else _utc
    if types.is_duration(type_) and type_.unit == "ns":
        return arrow.int64(), _duration
    if types.is_time64(type_) and type_.unit == "ns":
        return arrow.int64(), _time_of_day
    if types.is_map(type_):
        (keys, of_key), (items, of_item) = _plain(type_.key_type), _plain(type_.item_type)
        if of_key is None and of_item is None:
            return type_, None
        key, item = _or_none(of_key), _or_none(of_item)
        return arrow.map_(keys, items), lambda pairs: [(key(one), item(other)) for one, other in pairs]
    if types.is_struct(type_):
        fields = [type_.field(number) for number in range(type_.num_fields)]
        found = [_plain(field.type) for field in fields]
        forms = {
            field.name: _or_none(form)
            for field, (_, form) in zip(fields, found, strict=True)
            if form is not None
        }
        if not forms:
            return type_, None
        changed = [field.with_type(new) for field, (new, _) in zip(fields, found, strict=True)]
        return arrow.struct(changed), lambda row: {
            name: forms[name](value) if name in forms else value for name, value in row.items()
        }
    makers = {
        types.is_list: arrow.list_,
        types.is_large_list: arrow.large_list,
        types.is_list_view: arrow.list_view,
        types.is_large_list_view: arrow.large_list_view,
        types.is_fixed_size_list: lambda field: arrow.list_(field, type_.list_size),
    }
    for is_type, make in makers.items():
        if is_type(type_):
            new, form = _plain(type_.value_type)
            if form is None:
                return type_, None
            return make(type_.value_field.with_type(new)), _each(form)
    return type_, None


def _each(form: _Form) -> _Form:
    one = _or_none(form)
    return lambda items: list(map(one, items))


def _or_none(form: _Form | None) -> _Form:
    if form is None:
        return lambda value: value
    return lambda value: None if value is None else form(value)


def _time(count: int) -> str:
    seconds, rest = divmod(count, _SECOND)
    return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]}.{rest:09d}"


def _utc(count: int) -> str:
    return _time(count) + "Z"


def _time_of_day(count: int) -> str:
    return _time(count).partition("T")[2]


def _duration(count: int) -> str:
    seconds, rest = divmod(abs(count), _SECOND)
    return f"{'-' if count < 0 else ''}PT{seconds}.{rest:09d}S"
