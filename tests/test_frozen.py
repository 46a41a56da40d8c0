"""Datasets, orders and states that version 0.1 wrote are read bit for bit."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss

FOLDER = Path(__file__).parent / "data" / "v01"
_spec = importlib.util.spec_from_file_location("v01_make", FOLDER / "make.py")
assert _spec is not None
assert _spec.loader is not None
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)
ANSWERS: list[dict[str, Any]] = json.loads((FOLDER / "answers.json").read_text())


def dataset(question: list[Any]) -> Any:
    return made.mixture(FOLDER) if question == ["mixture"] else made.dataset(FOLDER, *question)


@pytest.fixture(params=ANSWERS, ids=lambda each: "-".join(map(str, each["question"])))
def frozen(request: pytest.FixtureRequest) -> tuple[list[Any], dict[str, Any]]:
    return request.param["question"], request.param["answer"]


def test_every_item_comes_as_it_did(frozen: tuple[list[Any], dict[str, Any]]) -> None:
    question, answer = frozen
    ds = dataset(question)
    assert [[made.digest(item) for item in ds] for _ in answer["epochs"]] == answer["epochs"]


def test_a_state_is_gone_on_from(frozen: tuple[list[Any], dict[str, Any]]) -> None:
    question, answer = frozen
    first, second = answer["epochs"]
    loader = ss.StreamingLoader(dataset(question), 3, collate=list, last="short")
    loader.load_state_dict(answer["state"])
    assert loader.state_dict() == answer["state"]
    assert digests(loader) == first[answer["state"]["position"] :]
    assert digests(loader) == second


def digests(loader: Any) -> list[str]:
    """The items of a loader's epoch, without the mark of later versions."""
    items = itertools.chain.from_iterable(loader)
    return [made.digest({name: value for name, value in item.items() if name != "__pad__"}) for item in items]
