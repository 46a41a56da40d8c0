"""Columns of values in an index file: in = out, and damage is named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from shardstream.errors import CorruptionError, OptionError
from shardstream.format.column_arrays import StoredColumn
from shardstream.format.columns import ColumnInfo, encode, merge, text
from shardstream.format.index_contents import columns_from_bytes
from shardstream.format.rows import index_bytes, index_parts

INTS = st.integers(-(2**63), 2**63 - 1)
KINDS = {"bool": st.booleans(), "int64": INTS, "float64": st.floats(), "str": st.text(max_size=20)}


def stored(values: dict[str, list[Any]], samples: int) -> tuple[dict[str, StoredColumn], list[ColumnInfo]]:
    infos, tensors = encode(values)
    keys = [b"%d" % number for number in range(samples)]
    head, tail = index_parts([], [], keys, 0, tensors)
    assert set(safetensors.numpy.load(head + tail)) >= {tensor.name for tensor in tensors}
    return columns_from_bytes(head + tail, "x.index", infos, samples), infos


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (
        one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
    )


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 12))
def test_values_come_back_as_they_were(data: st.DataObject, samples: int) -> None:
    kinds = data.draw(
        st.dictionaries(st.text(min_size=1, max_size=9), st.sampled_from(sorted(KINDS)), max_size=4)
    )
    columns = {
        name: data.draw(st.lists(st.none() | KINDS[kind], min_size=samples, max_size=samples))
        for name, kind in kinds.items()
    }
    found, infos = stored(columns, samples)
    kept = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    assert [info.name for info in infos] == list(kept)
    for info in infos:
        values, column = kept[info.name], found[info.name]
        assert info.dtype == kinds[info.name]
        assert info.missing == values.count(None) == int(column.missing.sum())
        back = column.as_type(info.dtype, info.name).tolist()
        assert all(same(one, value) for one, value in zip(back, values, strict=True) if value is not None)


def test_an_index_does_not_grow_by_columns_that_nobody_keeps() -> None:
    plain = index_bytes([], [], [b"a", b"b"], 0)
    assert index_parts([], [], [b"a", b"b"], 0, encode({})[1]) == (plain, b"")
    assert index_parts([], [], [b"a", b"b"], 0, encode({"none": [None, None]})[1]) == (plain, b"")


@pytest.mark.parametrize(
    ("values", "dtype", "back"),
    [
        ([1, 2.5, None], "float64", [1.0, 2.5, math.nan]),
        ([2**53 + 1, 0.5], "str", [str(2**53 + 1), "0.5"]),
        ([True, 1], "str", ["true", "1"]),
        ([1, "n/a", 2.0, math.inf], "str", ["1", "n/a", "2", "Infinity"]),
        (["", None, "é"], "str", ["", None, "é"]),
        ([False, None], "bool", [False, False]),
    ],
)
def test_values_of_several_types_have_one_that_holds_them(
    values: list[Any], dtype: str, back: list[Any]
) -> None:
    found, (info,) = stored({"x": values}, len(values))
    assert info.dtype == dtype
    given = found["x"].as_type(info.dtype, "x").tolist()
    assert all(same(one, other) for one, other in zip(given, back, strict=True))


@pytest.mark.parametrize("count", [255, 256, 65_536])
def test_codes_of_strings_are_as_wide_as_they_must_be(count: int) -> None:
    values = [str(number) for number in range(count)]
    found, _ = stored({"x": values}, count)
    assert found["x"].values.dtype == ("u1" if count < 256 else "u2" if count < 65_536 else "u4")
    assert found["x"].as_type("str", "x").tolist() == values


@given(
    st.lists(
        st.lists(st.none() | INTS | st.floats(allow_nan=False) | st.text(max_size=5), max_size=5), max_size=4
    )
)
def test_shards_of_several_types_have_one_that_holds_them(shards: list[list[Any]]) -> None:
    """The type of the dataset does not depend on where shards end, except for numbers that float64 lacks."""
    parts = [(len(values), encode({"x": values})[0]) for values in shards]
    together = encode({"x": [value for values in shards for value in values]})[0]
    found = merge(parts)
    assert [info.missing for info in found] == [info.missing for info in together]
    for values in shards:
        columns, infos = stored({"x": values}, len(values))
        if infos and found[0].dtype == "str":
            given = columns["x"].as_type("str", "x").tolist()
            assert given == [None if value is None else text(value) for value in values]


def test_a_number_that_a_float_lacks_is_not_rounded() -> None:
    found, _ = stored({"x": [2**53 + 1]}, 1)
    with pytest.raises(OptionError, match=r"'x' has whole numbers above 2\*\*53"):
        found["x"].as_type("float64", "x")


def _tamper(name: str, change: Any) -> bytes:
    _, tensors = encode({"s": ["aé", None, "b"], "b": [True, False, None], "n": [1, 2, 3]})
    head, tail = index_parts([], [], [b"1", b"2", b"3"], 0, tensors)
    arrays = safetensors.numpy.load(head + tail)
    arrays[name] = change(arrays[name])
    return safetensors.numpy.save(arrays)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("column.s", lambda a: a + np.uint8(1), "a string that there is not"),
        ("column.s", lambda a: np.where(a == 0, 1, a).astype("u1"), "0 samples lack it, the manifest says 1"),
        ("column.s", lambda a: a[:2].copy(), "which is not str of 3 samples"),
        ("column.n", lambda a: a.astype("f8"), "float64 .3,., which is not int64"),
        ("column.b", lambda a: a + np.uint8(2), "neither 0 nor 1"),
        ("missing.b", lambda a: a * np.uint8(7), "not marked by 0 and 1"),
        ("string_offset.s", lambda a: a[::-1].copy(), "do not rise"),
        ("string_offset.s", lambda a: np.array([0, 2, 4], "u8"), "begins inside a character"),
        ("string_bytes.s", lambda a: a | np.uint8(0x80), "not UTF-8"),
    ],
)
def test_damage_is_named(name: str, change: Any, message: str) -> None:
    infos = [ColumnInfo("s", "str", 1), ColumnInfo("b", "bool", 1), ColumnInfo("n", "int64")]
    with pytest.raises(CorruptionError, match=rf"x\.index: column '{name[-1]}': .*{message}"):
        columns_from_bytes(_tamper(name, change), "x.index", infos, 3)


def test_arrays_that_the_manifest_does_not_list_are_refused() -> None:
    data = _tamper("column.n", lambda a: a)
    with pytest.raises(CorruptionError, match=r"the index holds the arrays .*column\.s"):
        columns_from_bytes(data, "x.index", [ColumnInfo("n", "int64")], 3)
    with pytest.raises(CorruptionError, match="not an index file"):
        columns_from_bytes(data[:-3], "x.index", [ColumnInfo("s", "str", 1)], 3)
