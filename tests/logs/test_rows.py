"""Rows and lines: what goes in comes out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shardstream.errors import OptionError
from shardstream.logs.rows import decode, encode

WORDS = ("NaN", "Infinity", "-Infinity")
texts = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text not in WORDS)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


@given(st.dictionaries(texts, values, max_size=4))
def test_a_row_is_one_line_of_strict_json_and_comes_back(row: dict[str, Any]) -> None:
    line = encode(row)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(line, parse_constant=refuse)
    # Fields of logging records are text, whatever they say.
    known = {name: value for name, value in row.items() if name not in ("level", "logger", "message")}
    found = decode(line)
    assert all(same(value, found[name]) for name, value in known.items())


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        (np.float32("nan"), "NaN"),
        (np.array([1.0, float("inf")]), [1.0, "Infinity"]),
        (torch.tensor(2.5), 2.5),
        (torch.tensor(2, dtype=torch.int8), 2),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(1.0, requires_grad=True), 1.0),
        (torch.tensor(float("-inf")), "-Infinity"),
        (torch.nn.Parameter(torch.ones(2)), [1.0, 1.0]),
        (torch.float16, "torch.float16"),
        (Path("/a"), "/a"),
        (2**70, 2**70),
        ({"a": {1: float("nan")}}, {"a": {"1": "NaN"}}),
        ((1, None), [1, None]),
        ("bad \udcff", "bad \\udcff"),
    ],
    ids=repr,
)
def test_values_of_other_types(value: Any, written: Any) -> None:
    assert msgspec.json.decode(encode({"x": value})) == {"x": written}


def test_text_of_a_logging_record_stays_text() -> None:
    row = {"message": "NaN", "loss": float("nan")}
    found = decode(encode(row))
    assert found["message"] == "NaN"
    assert math.isnan(found["loss"])


def test_what_cannot_be_written_is_refused() -> None:
    inside: list[Any] = []
    inside.append(inside)
    with pytest.raises(OptionError, match="RecursionError"):
        encode({"x": inside})

    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(OptionError, match="no text"):
        encode({"x": Bad()})


@pytest.mark.parametrize("line", [b"", b"{", b"[1]\n", b"\xff\n", b'{"a": 1} x\n'])
def test_a_damaged_line_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        decode(line)
