"""Rows and lines: what goes in comes out."""

from __future__ import annotations

import dataclasses
import datetime
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


class Odd:
    """Nothing can be said of it."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class NoText:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        return "NoText \udc80"


@dataclasses.dataclass
class Settings:
    lr: Any


def contains_itself() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (np.float32, "<class 'numpy.float32'>"),
        (torch.Tensor, "<class 'torch.Tensor'>"),
        ({True: 1, None: 2, (1, 2): 3}, {"True": 1, "None": 2, "(1, 2)": 3}),
        ({np.int64(1): 2}, {"1": 2}),
        (np.longdouble(1.5), 1.5),
        (np.array([1.5], np.longdouble), [1.5]),
        (np.longdouble("inf"), "Infinity"),
        (torch.empty(2, device="meta"), "tensor(..., device='meta', size=(2,))"),
        ({float("nan")}, ["NaN"]),
        (frozenset([2.0]), [2.0]),
        ([Settings(float("inf")), Settings(np.float32("nan"))], [{"lr": "Infinity"}, {"lr": "NaN"}]),
        ([Settings({2.0: {float("nan")}}), None], [{"lr": {"2.0": ["NaN"]}}, None]),
        ([b"abc", datetime.timedelta(seconds=3), None], ["YWJj", "PT3S", None]),
        (contains_itself(), "[[...]]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_odd_value_does_not_cost_the_row(value: Any, written: Any) -> None:
    assert msgspec.json.decode(encode({"x": value, "step": 1})) == {"x": written, "step": 1}


def test_an_object_that_raises_when_it_is_asked_for_its_text() -> None:
    found = msgspec.json.decode(encode({"x": Odd(), "y": [NoText()], "z": None, "step": 1}))
    assert found == {"x": "<Odd>", "y": ["NoText \\udc80"], "z": None, "step": 1}
    assert "indices" in msgspec.json.decode(encode({"x": torch.eye(2).to_sparse()}))["x"]


@pytest.mark.parametrize("line", [b"", b"{", b"[1]\n", b"\xff\n", b'{"a": 1} x\n'])
def test_a_damaged_line_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        decode(line)
